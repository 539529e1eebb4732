"""Where things run: this process, Ray actors, a cluster. The only room that imports ray."""
