"""ALIGN: two towers that meet in one space (Jia et al. 2021, arXiv 2102.05918, section 4.1, figure 1).

    text  → BERT → [CLS] → linear ─┐
                                   ├─ L2-normalize → cosines / temperature
    image → EfficientNet → pool ───┘

But: no projection on the image side, as in the paper's main model; its ablations (6.1) give small towers one.
"""

from __future__ import annotations

import torch
import torch.nn as nn
from torch import Tensor

from .bert import AlignTextModel
from .checkpoint import PretrainedModel
from .config import AlignConfig
from .contrastive import contrastive_loss
from .efficientnet import AlignVisionModel, round_filters
from .support.outputs import ModelOutput


class AlignModel(PretrainedModel):
    """Both towers, the text projection and the temperature; D = projection_dim is the image tower's width.

    Raises ValueError if projection_dim differs from that width.

    >>> _ = torch.manual_seed(0)
    >>> model = AlignModel(AlignConfig.preset("emoji"))
    >>> model(torch.tensor([[2, 7, 3]]), torch.rand(2, 3, 64, 64)).logits_per_image.shape
    torch.Size([2, 1])
    """

    config_class = AlignConfig

    def __init__(self, config: AlignConfig):
        super().__init__(config)
        vision = config.vision_config
        width = round_filters(vision.out_channels[-1], vision)
        if width != config.projection_dim:
            raise ValueError(
                f"projection_dim {config.projection_dim} must equal the image tower's width, {width}: "
                "there is no image projection"
            )
        self.text_model = AlignTextModel(config.text_config)
        self.vision_model = AlignVisionModel(vision)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.temperature = nn.Parameter(torch.tensor(float(config.temperature_init_value)))
        nn.init.xavier_uniform_(self.text_projection.weight)
        nn.init.zeros_(self.text_projection.bias)

    def for_inference(self, dtype: torch.dtype | None = None) -> AlignModel:
        """A copy that is ready to serve: the same numbers, faster (see inference.py).

        `dtype`, say torch.bfloat16, is its towers'; pixels and results are float32 whatever it is. It stays
        on this model's device, and can be neither trained nor saved.
        """
        from .using.inference import ServedModel

        return ServedModel(self, dtype)

    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Tensor:
        """The texts' embeddings, (B, D), not normalized: [CLS] projected. Arguments as AlignTextModel's.

        The last three change nothing here; they stand in the documented signature.
        """
        text = self.text_model(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds
        )
        return self.text_projection(text.last_hidden_state[:, 0])  # (B, D)

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Tensor:
        """The images' embeddings, (B, D), not normalized. The last two arguments change nothing here."""
        return self.vision_model(pixel_values).pooler_output

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple:
        """Compare every text (B_t, T) with every image (B_i, 3, H, W).

        → logits_per_image (B_i, B_t), logits_per_text, text_embeds (B_t, D) and image_embeds (B_i, D), both
        normalized, the towers' own outputs, and, with return_loss (which needs B_t = B_i), the loss.
        """
        vision = self.vision_model(pixel_values, output_hidden_states)
        text = self.text_model(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            output_attentions,
            output_hidden_states,
        )
        image_embeds = vision.pooler_output  # (B_i, D)
        text_embeds = self.text_projection(text.last_hidden_state[:, 0])  # (B_t, D)
        # No eps: an embedding of zeros is a bug to be seen, as NaN.
        image_embeds = image_embeds / image_embeds.norm(dim=-1, keepdim=True)
        text_embeds = text_embeds / text_embeds.norm(dim=-1, keepdim=True)
        logits_per_text = text_embeds @ image_embeds.T / self.temperature  # (B_t, B_i): cosines over σ
        output = ModelOutput(
            loss=contrastive_loss(text_embeds, image_embeds, self.temperature) if return_loss else None,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )
        return output if return_dict is not False else output.to_tuple()
