"""Where the towers meet (figure 1).

Write the bodies; you need not use all the imports. Check them from the top of the repository, one by one:

    pytest --layer AlignModel=notebooks/exercises/07_align.py:AlignModel tests

or all that this file has:

    pytest --layer notebooks/exercises/07_align.py tests
"""

# ruff: noqa: F401
from __future__ import annotations

import torch
from torch import Tensor, nn

from align_minimal.bert import AlignTextModel
from align_minimal.checkpoint import PretrainedModel
from align_minimal.config import AlignConfig
from align_minimal.contrastive import contrastive_loss
from align_minimal.efficientnet import AlignVisionModel, round_filters
from align_minimal.support.checks import check_width
from align_minimal.support.outputs import AlignOutput, TextOutput


class AlignModel(PretrainedModel[AlignOutput]):
    """Both towers, the text projection and the temperature; D = projection_dim is the image tower's width.

    Raises ValueError if projection_dim differs from that width.

    >>> _ = torch.manual_seed(0)
    >>> model = AlignModel(AlignConfig.preset("emoji"))
    >>> model(torch.tensor([[2, 7, 3]]), torch.rand(2, 3, 64, 64)).logits_per_image.shape
    torch.Size([2, 1])
    """

    config_class = AlignConfig
    input_embeddings = "text_model.embeddings.word"

    def __init__(self, config: AlignConfig):
        raise NotImplementedError

    def project_text(self, text: TextOutput) -> Tensor:
        """The text tower's output as embeddings, not normalized: [CLS] projected. (B, T, H) → (B, D)"""
        raise NotImplementedError

    def get_text_features(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, position_ids: Tensor | None = None,
        head_mask: Tensor | None = None, inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """The texts' embeddings, (B, D), not normalized. The arguments are AlignTextModel's.

        The last three change nothing here; they stand in Hugging Face's signature.
        """
        raise NotImplementedError

    def get_image_features(
        self, pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """The images' embeddings, (B, D), not normalized. The last two arguments change nothing here."""
        raise NotImplementedError

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, return_loss: bool | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> AlignOutput | tuple:  # fmt: skip
        """Compare every text (B_t, T) with every image (B_i, 3, H, W).

        → logits_per_image (B_i, B_t), logits_per_text, text_embeds (B_t, D) and image_embeds (B_i, D), both
        normalized, the towers' own outputs, and, with return_loss (which needs B_t = B_i), the loss.
        """
        raise NotImplementedError
