"""What is each part of a method worth? The whole of it, and without one part after the other.

Question    OTDPP without second prompt, vision prompts, balanced transport; FedRSCLIP without alignment constraint or
            private prompt; FedMPT without transport, adapters or gate: what is lost?
Papers      OTDPP, Figure 3; FedRSCLIP, Tables V and VI; FedMPT, Table 4.
Prints      for each method a table of variants, mean +- std over seeds with n_eval and the delta to the best; bars of
            the same. Scores: local accuracy, and FedMPT's global mAP.
Cost        embedded default: README.md has the figure; --smoke seconds. --real: a day on one GPU, FedMPT several.
Expected    a private prompt is worth most for skewed clients; the rest a few points, either way.

    python studies/ablation.py                       OTDPP and FedRSCLIP; --of fedmpt the third
    python studies/ablation.py --real --of fedrsclip --root DIR

FedRSCLIP without transport (Table VII) and FedMPT with adapters alone are not there. The same command goes on.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from fedray import protocols, study
from fedray.experiment import Experiment


class Whole(NamedTuple):
    """A method: its variants by title, each a method with options; on what; and how it is scored."""

    variants: dict[str, tuple[str, study.Fields]]
    embedded: study.Fields
    real: study.Fields
    score: str


def _without(*parts: str) -> tuple[str, study.Fields]:
    return "fedmpt", {f"method.{part}": False for part in parts}


RATES = {"otdpp": 0.1, "otdpp_inferred": 0.1, "fedotp": 0.1, "plot": 0.5, "fedrsclip": 0.02, "promptfl": 0.2,
         "fedmpt": 1.0}  # fmt: skip
SINGLE = {"rounds": 20, "evaluate_every": 20, "local.schedule": "cosine", "local.group": 0}
WHOLES = {
    "otdpp": Whole({
        "OTDPP": ("otdpp", {}),
        "text prompts only": ("otdpp_inferred", {}),
        "text only, partial transport": ("fedotp", {"method.n_ctx": 4}),
        "one shared prompt (OT)": ("plot", {"method.prompts": 1, "method.n_ctx": 4}),
    }, SINGLE, {**protocols.otdpp, "data.name": "caltech101", "evaluate_every": 100}, "acc_local"),
    "fedrsclip": Whole({
        "FedRSCLIP": ("fedrsclip", {}),
        "no alignment (DPAC)": ("fedrsclip", {"method.lambda_a": 0.0}),
        "one shared prompt (SPM)": ("promptfl", {"method.n_ctx": 4, "method.position": "middle"}),
    }, SINGLE, {**protocols.fedrsic, "data.name": "optimal31", "evaluate_every": 50}, "acc_local"),
    "fedmpt": Whole({
        "FedMPT": _without(),
        "no gate": _without("gate"),
        "no transport": _without("transport"),
        "no adapters, no gate": _without("adapters", "gate"),
        "no transport, no gate": _without("transport", "gate"),
        "conditions alone": _without("transport", "adapters", "gate"),
    }, study.FEW_SCENES, {**protocols.fedmpt, "data.name": "voc2007", "evaluate_every": 100}, "map_global"),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Which methods to take apart, and on what; learning rates were chosen on seed 0, which is not reported."""

    of: tuple[Literal["otdpp", "fedrsclip", "fedmpt"], ...] = ("otdpp", "fedrsclip")
    on: study.On = study.DEFAULT
    at: study.At = study.HERE


def variants(o: Options, of: str) -> dict[str, list[Experiment]]:
    """The cells of each variant of one method, by title."""
    whole = WHOLES[of]
    found = {}
    for title, (method, fields) in list(whole.variants.items())[: 2 if o.on.smoke else None]:
        rated = study.Ground({method: {"local.lr": RATES[method], **fields}}, whole.embedded)
        real = study.Ground({method: fields}, whole.real)
        found[title] = study.cells(replace(o.on, methods=(method,)), {}, embedded=rated, real=real)
    return found


def cells(o: Options) -> list[Experiment]:
    """Every variant of every method, for every seed."""
    return [cell for of in o.of for part in variants(o, of).values() for cell in part]


def compared(o: Options, of: str) -> None:
    """The table and the bars of one method."""
    from fedray.report import ablations, tables

    score, parts = WHOLES[of].score, variants(o, of)
    titles = {cell.run_id: title for title, part in parts.items() for cell in part}
    if (frame := study.frame([cell for part in parts.values() for cell in part], o.at, f"ablation_{of}")).empty:
        return
    data = frame.assign(variant=frame["run"].map(titles), method=of)
    data = tables.summary(data, by=["method", "variant"], metrics=[score])
    data = data.sort_values("variant", key=lambda names: names.map(list(parts).index), ignore_index=True)
    sheet, data["delta"] = tables.sheet(data.drop(columns="method")), data[score] - data[score].max()
    study.publish(o.at, f"ablation_{of}", "ablation", data, sheet, ablations.bars(data, score=score))


def main(o: Options) -> int:
    """Sweep, tell, draw, one method after the other; returns the exit code of the worst."""
    code = 0
    for of in o.of:
        part = cells(replace(o, of=(of,)))
        axes = {path: 0 for method, fields in WHOLES[of].variants.values() if method == of for path in fields}
        code = max(code, study.sweep(part, o.at, name=f"ablation_{of}", axes=[*axes]))
        compared(o, of)
    return code


if __name__ == "__main__":
    sys.exit(study.main(Options, main))
