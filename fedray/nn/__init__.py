"""Pure torch: frozen towers, prompts, transport, heads and losses; knows no client and no server."""
