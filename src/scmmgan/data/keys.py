"""The one place that spells slot names."""

from __future__ import annotations

from dataclasses import dataclass

FORMAT = 4  # raised whenever a slot changes: records of another number cannot be read


@dataclass(frozen=True)
class Keys:
    """Names of all slots that belong to one alignment."""

    key: str = "scmmgan"

    @property
    def uns(self) -> str:
        """`mdata.uns`: format, params, features, landmarks, history, diagnosis, model."""
        return self.key

    @property
    def embedding(self) -> str:
        """`mdata[m].obsm` and `mdata.obsm`: joint embedding."""
        return f"X_{self.key}"

    def mapped(self, target: str) -> str:
        """`mdata[source].obsm`, and `.layers` where both have the same var_names: source cells in the target's features."""
        return f"{self.key}_{target}"

    def counts(self, target: str) -> str:
        """`mdata[source].obsm`: scores of the source's counts, from which features that only the target has are predicted."""
        return f"{self.key}_counts_{target}"

    def plan(self, target: str) -> str:
        """`mdata[source].obsm`: coupling of cells with the target's landmarks."""
        return f"{self.key}_plan_{target}"

    @property
    def landmark(self) -> str:
        """`mdata[m].obs`: number of the landmark that stands for the cell in couplings."""
        return f"{self.key}_landmark"

    def unmatched(self, target: str | None = None) -> str:
        """`mdata[source].obs`: share of a cell without a partner; `target` named where there are several."""
        return f"{self.key}_unmatched" + (f"_{target}" if target else "")

    def ambiguous(self, target: str | None = None) -> str:
        """`mdata[source].obs`: whether rival couplings send the cell elsewhere; `target` named where there are several."""
        return f"{self.key}_ambiguous" + (f"_{target}" if target else "")

    @property
    def ood(self) -> str:
        """`obs` of new cells: how far out they are, as a share of the training cells."""
        return f"{self.key}_ood"

    def coordinates(self, target: str) -> str:
        """`mdata[source].obsm`: places of the source's cells in the target's tissue."""
        return f"{self.key}_coordinates_{target}"

    def spread(self, target: str | None = None) -> str:
        """`mdata[source].obs`: how far places under the plan are apart; `target` named where there are several."""
        return "_".join(name for name in (self.key, "spread", target) if name)

    def section(self, target: str) -> str:
        """`mdata[source].obs`: section of the target's tissue that a cell was placed in."""
        return f"{self.key}_section_{target}"

    def uncertainty(self, part: str | None = None, source: str | None = None) -> str:
        """`mdata[target].var`: uncertainty of mapped features, of one `part`; `source` named where there are several."""
        return "_".join(name for name in (self.key, "uncertainty", part, source) if name)

    def cell_uncertainty(self, target: str | None = None) -> str:
        """`mdata[source].obs`: uncertainty of mapped cells; `target` named where there are several."""
        return "_".join(name for name in (self.key, "uncertainty", target) if name)

    def evidence(self, part: str | None = None, source: str | None = None) -> str:
        """`mdata[target].var`: held-out correlation of linked features, or a `part`: "q", or "ceiling", its share of that."""
        return "_".join(name for name in (self.key, "evidence", part, source) if name)

    def match(self, target: str) -> str:
        """`mdata[source].obs`: name of the best partner, `.obsm`: weights of the partners (cells × cells of the target)."""
        return f"{self.key}_match_{target}"

    def match_confidence(self, target: str) -> str:
        """`mdata[source].obs`: how far the partners are to be trusted."""
        return f"{self.match(target)}_confidence"

    def transferred(self, target: str, column: str, part: str | None = None) -> str:
        """`mdata[source].obs`: what the target's cells have in `column`; `.obsm`: shares of labels; or a `part` of it."""
        return "_".join(name for name in (self.key, target, column, part) if name)

    def cluster(self, target: str | None = None) -> str:
        """`mdata[source].obs`: clusters of mapped cells; `target` named where there are several."""
        return "_".join(name for name in (self.key, "cluster", target) if name)

    def detection(self) -> str:
        """`mdata[target].var`: share of the cells in which a feature was seen."""
        return f"{self.key}_detection"

    def interval(self, source: str | None = None) -> str:
        """`mdata[target].var`: half-width of the intervals around mapped values; `source` named where there are several."""
        return "_".join(name for name in (self.key, "interval", source) if name)

    def landmark_moments(self) -> tuple[str, str]:
        """`mdata[target].varm`: mean and variance of features at the landmarks."""
        return f"{self.key}_landmark_mean", f"{self.key}_landmark_variance"

    def cell_plan(self, target: str) -> str:
        """`mdata[source].obsm`: the coupling that uncertainty rests on."""
        return f"{self.key}_uncertainty_plan_{target}"

    @property
    def comparison(self) -> str:
        """`mdata.uns`: scores of several methods, by source and target."""
        return f"{self.key}_comparison"
