"""Faults of what multi-head latent attention puts around attention."""

import torch
from torch import Tensor

from kvrt.spi import Rotation
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.operators import WrappedLatentOps


class TakesTheNextHeadsMatrix(WrappedLatentOps):
    def by_head(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        super().by_head(x, weight.roll(1, 0), out)


class MultipliesWithTheFirstHeads(WrappedLatentOps):
    """Heads of x one after the other, wherever they are."""

    def by_head(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        tokens, heads, width = x.shape
        near = x.as_strided((tokens, heads, width), (x.stride(0), width, 1))
        super().by_head(near, weight, out)


class MultipliesManyTokensOtherwise(WrappedLatentOps):
    def by_head(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        super().by_head(x, weight, out)
        if len(x) > 100:
            out.copy_(torch.einsum("thi,hoi->tho", x.double(), weight.double()))


class RotatesWhatItWasGiven(WrappedLatentOps):
    def rotate(self, x: Tensor, rotation: Rotation | None, out: Tensor) -> None:
        super().rotate(x, rotation, x)
        out.copy_(x)


class RotatesTheWholeHead(WrappedLatentOps):
    """Elements beyond those that have angles are dropped, which is what a whole head would say."""

    def rotate(self, x: Tensor, rotation: Rotation | None, out: Tensor) -> None:
        super().rotate(x, rotation, out)
        if rotation is not None:
            out[..., 2 * rotation.cos.shape[1] :].zero_()


class RotatesBackwards(WrappedLatentOps):
    def rotate(self, x: Tensor, rotation: Rotation | None, out: Tensor) -> None:
        turned = rotation and Rotation(rotation.cos, rotation.sin.neg())
        super().rotate(x, turned, out)


class LeavesWhatIsNotRotated(WrappedLatentOps):
    def rotate(self, x: Tensor, rotation: Rotation | None, out: Tensor) -> None:
        if rotation is not None:
            super().rotate(x, rotation, out)


MUTANTS = {
    "takes_the_next_heads_matrix": Mutant(
        "latent::test_a_head_is_multiplied_with_a_matrix_of_its_own",
        latents=TakesTheNextHeadsMatrix,
    ),
    "multiplies_with_the_first_heads": Mutant(
        "latent::test_a_head_is_multiplied_with_a_matrix_of_its_own",
        latents=MultipliesWithTheFirstHeads,
    ),
    "multiplies_many_tokens_otherwise": Mutant(
        "latent::test_a_head_has_the_bits_of_a_product_alone_beside_any_others",
        latents=MultipliesManyTokensOtherwise,
    ),
    "rotates_what_it_was_given": Mutant(
        "latent::test_heads_are_rotated_where_they_are_or_to_another_place",
        latents=RotatesWhatItWasGiven,
    ),
    "rotates_the_whole_head": Mutant(
        "latent::test_heads_are_rotated_where_they_are_or_to_another_place",
        latents=RotatesTheWholeHead,
    ),
    "rotates_backwards": Mutant(
        "latent::test_around_attention_they_read_what_keys_and_values_of_their_own_would_say",
        latents=RotatesBackwards,
    ),
    "leaves_what_is_not_rotated": Mutant(
        "latent::test_heads_are_rotated_where_they_are_or_to_another_place",
        latents=LeavesWhatIsNotRotated,
    ),
}
