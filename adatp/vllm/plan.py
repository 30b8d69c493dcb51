"""Which decoder layers see the same tokens, and which share blocks of the cache."""

from adatp.methods.method import BetweenLayers

MOST_GROUPS = 4  # each costs a block table, and every request rounds up to whole blocks in each


class Plan:
    """The stages and the cache groups of a model's layers.

    A stage is a run of layers between two cuts: they see the same tokens. A cache group is a run of layers with one
    block table; its blocks have room for the tokens that enter its first layer.

    Args:
        method: the method.
        layers: number of decoder layers, N.

    Attributes:
        method, layers: the arguments.
        cuts: the layers with a cut before them, in order.
        stage_of: the stage of each layer; 0 before the first cut.
        group_of: the cache group of each layer.
    """

    def __init__(self, method: BetweenLayers, layers: int) -> None:
        self.method = method
        self.layers = layers
        self.cuts = list(method.cuts(layers))
        self.stage_of = [sum(cut <= layer for cut in self.cuts) for layer in range(layers)]
        size = self._group_size() if self.cuts else layers
        self.group_of = [layer // size for layer in range(layers)]

    def first_of_group(self, layer: int) -> int:
        """Return the first layer of the cache group that `layer` is in."""
        return self.group_of.index(self.group_of[layer])

    def shares_whole_prompts(self, layer: int) -> bool:
        """Return whether the cache group of `layer` has room for whole prompts."""
        return self.stage_of[self.first_of_group(layer)] == 0

    def _group_size(self) -> int:
        """Return the number of layers in a cache group. vLLM wants the same number in each."""
        groups = next((count for count in range(MOST_GROUPS, 1, -1) if self.layers % count == 0), 1)
        return self.layers // groups
