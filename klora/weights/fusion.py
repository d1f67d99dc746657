"""The driver of one sampling pass: tells the host before each step which layers change, and to what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from klora.planning import Cast, Planner, Progress, make_planner
from klora.schedule import Expected, Moment, Plan, Shares
from klora.settings import Settings
from klora.weights.seam import Seam


def prepare(seam: Seam, cast: Cast, settings: Settings, progress: Progress = iter) -> Fusion:
    """Score the pair behind ``seam``, or take the scores kept from last time, and set up a fusion.

    ``progress`` wraps the layers to be scored, as tqdm does. Raises `PairError` if the two share no
    attention layer and `LoraFileError` if a delta is not finite.
    """
    return Fusion(seam, make_planner(seam, cast, settings, progress))


class Fusion:
    """One sampling pass.

    Use it as ``with fusion.sampling(): ...``, call `begin` when the moments of the pass are known, and `at`
    before each forward pass. ``changed`` counts the layers touched so far, the first application included.
    """

    def __init__(self, seam: Seam, planner: Planner) -> None:
        self.planner = planner
        self.changed = 0
        self._seam = seam
        self._controlled = dict.fromkeys(self._layers_that_may_change())
        self._planned: dict[Moment, Shares] = {}
        self._applied: Shares | None = None
        self._record: dict[int, Shares] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose shares are applied here; all others are as the host has them."""
        return tuple(self.planner.layers[place].name for place in self._controlled)

    def _layers_that_may_change(self) -> tuple[int, ...]:
        """The places of the layers in which a share may be other than 1; the rest is left to the host."""
        planner = self.planner
        moving = planner.moving_members()
        decided = set(planner.decided) if planner.cast.has_pair else set()
        return tuple(
            place
            for place, layer in enumerate(planner.layers)
            if place in decided or moving & layer.ranks.keys() or (planner.fixed[place] != 1).any()
        )

    def expected(self, moments: Sequence[Moment]) -> Expected:
        """What a host may merge ahead of a pass that is likely to have these moments.

        `at` decides all the same, whatever was expected.
        """
        shares, layers = self.planner.shares, self.planner.layers
        first = shares(moments[0])
        return Expected(
            {layers[place].name: first.of_layer(place) for place in self._controlled},
            lasts=lambda: all((shares(one).conditional == first.conditional).all() for one in moments[1:]),
        )

    def plan_anew(self, progress: Progress = iter) -> None:
        """Score the pair again, after the seam has exchanged it for another of the same layers and ranks."""
        before = self.planner
        self.planner = make_planner(self._seam, before.cast, before.settings, progress)
        self._planned, self._applied = {}, None

    @contextmanager
    def sampling(self) -> Iterator[Fusion]:
        """Hold the cast back from the host inside; everything is given back on the way out."""
        self._applied = None
        with self._seam.withheld(self.layers):
            yield self

    def begin(self, moments: Sequence[Moment]) -> None:
        """Plan the pass before its first forward: what `at` is asked for later is then at hand.

        `plan` tells of this pass from now on, and no more of the one before.
        """
        self._record = {}
        self._planned = {moment: self.planner.shares(moment) for moment in moments}

    def at(self, moment: Moment) -> int:
        """Apply the shares of a moment; return the number of layers touched."""
        shares = self._planned.get(moment)
        if shares is not None and shares is self._applied:
            return 0
        if shares is None:  # a sampler that computes between the levels of its own schedule
            shares = self.planner.shares(moment)
        self._record.setdefault(moment.step, shares)
        changed = [place for place in shares.changed_since(self._applied) if place in self._controlled]
        if changed:
            layers = self.planner.layers
            self._seam.apply({layers[place].name: shares.of_layer(place) for place in changed})
        self._applied = shares
        self.changed += len(changed)
        return len(changed)

    def plan(self) -> Plan:
        """What was applied in the steps that were run, of the pass that was begun last."""
        return self.planner.recorded([self._record[step] for step in sorted(self._record)])
