"""ALIGN: two towers that meet in one space (Jia et al. 2021, arXiv 2102.05918, section 4.1, figure 1).

    text  → BERT → [CLS] → linear ─┐
                                   ├─ L2-normalize → cosines / temperature
    image → EfficientNet → pool ───┘

Leaves out, as Hugging Face does: a projection on the image side. The paper's main model has none either; in
its ablations (6.1) B1, B3, B5 and L2 get one, to match B7's 640.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .bert import AlignTextModel
from .checkpoint import PretrainedModel  # an nn.Module that can be loaded and saved; read it last
from .config import AlignConfig
from .contrastive import contrastive_loss
from .efficientnet import AlignVisionModel, round_filters
from .support.checks import check_width
from .support.outputs import AlignOutput, TextOutput


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
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        check_width(config.projection_dim, round_filters(vision.out_channels[-1], vision))
        self.text_model = AlignTextModel(text)
        self.vision_model = AlignVisionModel(vision)
        self.text_projection = nn.Linear(text.hidden_size, config.projection_dim)
        self.temperature = nn.Parameter(torch.tensor(float(config.temperature_init_value)))
        nn.init.xavier_uniform_(self.text_projection.weight)
        nn.init.zeros_(self.text_projection.bias)

    def project_text(self, text: TextOutput) -> Tensor:
        """The text tower's output as embeddings, not normalized: [CLS] projected. (B, T, H) → (B, D)"""
        return self.text_projection(text.last_hidden_state[:, 0])

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
        text_inputs = input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds
        return self.project_text(self.text_model(*text_inputs))

    def get_image_features(
        self, pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """The images' embeddings, (B, D), not normalized. The last two arguments change nothing here."""
        return self.vision_model(pixel_values).pooler_output

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
        text_inputs = input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds
        vision = self.vision_model(pixel_values, output_hidden_states)
        text = self.text_model(*text_inputs, output_attentions, output_hidden_states)
        x, y = vision.pooler_output, self.project_text(text)  # images (B_i, D), texts (B_t, D)
        # No eps: an embedding of zeros shows itself as NaN. It is a bug, or an untrained image tower in eval
        # mode, whose 1e-23 is 0 once it is squared.
        x = x / x.norm(dim=-1, keepdim=True)
        y = y / y.norm(dim=-1, keepdim=True)
        logits_per_text = y @ x.T / self.temperature  # (B_t, B_i): cosines over σ
        output = AlignOutput(
            # From embeddings, not logits: training can then compute a large batch's logits tile by tile.
            loss=contrastive_loss(y, x, self.temperature) if return_loss else None,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=y,
            image_embeds=x,
            text_model_output=text,
            vision_model_output=vision,
        )
        return output if return_dict is not False else output.to_tuple()

    def for_inference(self, dtype: torch.dtype | None = None) -> AlignModel:
        """A copy that is ready to serve: the same numbers, faster (see using/inference.py).

        `dtype`, say torch.bfloat16, is that of its towers; pixels and results are float32 whatever it is. The
        copy stays on this model's device, and can be neither trained nor saved.
        """
        from .using.inference import ServedModel

        return ServedModel(self, dtype)
