"""Small mistakes that people make, each with the test that must go red and a hint (see break_it.py).

`old` stands once in `file`, and `new` in its place is the mistake. The hints also explain what is wrong with
a reader's own layer (layers.py), where that computes what the mistake computes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One mistake: where it is made, which test sees it, and what to tell who made it."""

    name: str
    file: str  # in align_minimal/
    old: str
    new: str
    test: str  # in tests/
    hint: str


def mutation(name: str, file: str, test: str, hint: str, *, old: str, new: str) -> Mutation:
    return Mutation(name, file, old, new, test, hint)


PART = "test_efficientnet.py::test_part_equals_the_reference_in_values_and_gradients"
TOWER = "test_vision_tower.py::test_tower_equals_the_reference_in_values_and_gradients"
GOLDEN_TEXTS = "test_tokenizer.py::test_tokens_ids_and_decoded_text_equal_the_reference_s"
TWO_PROCESSES = "test_distributed_loss.py::test_two_processes_have_the_loss_and_gradients_of_one"
GOLDEN_PIXELS = "test_image_processor.py::test_pixels_equal_the_reference_s_bit_for_bit"

INPUTS = [
    mutation(
        "lower-whole-string",
        "wordpiece.py",
        "test_tokenizer.py::test_lower_is_character_by_character_on_every_code_point",
        "str.lower() looks at a capital sigma's neighbours (ΟΔΟΣ → οδος); BERT lowers each character alone",
        old='return text.replace("Σ", "σ").lower()',
        new="return text.lower()",
    ),
    mutation(
        "tab-is-a-control-character",
        "wordpiece.py",
        GOLDEN_TEXTS,
        "tab and newline are control characters to Unicode, but white space to BERT: they part words",
        old='if c in "\\t\\n\\r" or category == "Zs":',
        new='if category == "Zs":',
    ),
    mutation(
        "compatibility-composition",
        "wordpiece.py",
        GOLDEN_TEXTS,
        "the text is composed with NFC; NFKC also rewrites ligatures and half-width letters",
        old='unicodedata.normalize("NFC", ',
        new='unicodedata.normalize("NFKC", ',
    ),
    mutation(
        "accents-not-decomposed",
        "wordpiece.py",
        GOLDEN_TEXTS,
        "é is one character: only after NFD is its accent a mark of its own, which can be dropped",
        old='unicodedata.normalize("NFD", word).translate(DROP_MARKS)',
        new="word.translate(DROP_MARKS)",
    ),
    mutation(
        "ascii-symbols-are-letters",
        "wordpiece.py",
        GOLDEN_TEXTS,
        "to Unicode $ + < = > ^ ` | ~ are symbols, not punctuation; BERT splits at them too",
        old='c in string.punctuation or unicodedata.category(c)[0] == "P"',
        new='unicodedata.category(c)[0] == "P"',
    ),
    mutation(
        "shortest-piece-first",
        "wordpiece.py",
        "test_tokenizer.py::test_greedy_longest_match_and_one_unk_for_any_unmatched_rest",
        "the match is greedy: try the longest piece first, and shorten it until the vocabulary has it",
        old="range(len(word), start, -1)",
        new="range(start + 1, len(word) + 1)",
    ),
    mutation(
        "unknown-rest-keeps-its-start",
        "wordpiece.py",
        "test_tokenizer.py::test_greedy_longest_match_and_one_unk_for_any_unmatched_rest",
        "one rest without a piece makes the whole word one [UNK]; the pieces found before go too",
        old="            return [unk_token]\n        pieces",
        new="            return [*pieces, unk_token]\n        pieces",
    ),
    mutation(
        "no-hashes-inside-a-word",
        "wordpiece.py",
        "test_tokenizer.py::test_greedy_longest_match_and_one_unk_for_any_unmatched_rest",
        'a piece that does not start the word is spelled with "##" in the vocabulary',
        old='mark = "##" if start else ""',
        new='mark = ""',
    ),
    mutation(
        "merge-by-frequency",
        "wordpiece.py",
        "test_tokenizer.py::test_the_training_score_prefers_pairs_that_keep_to_each_other",
        "WordPiece merges the pair with the highest freq(ab) / (freq(a)·freq(b)); freq(ab) alone is BPE",
        old="together[candidates] / (a * b)",
        new="together[candidates]",
    ),
    mutation(
        "truncation-off-by-one",
        "tokenizer.py",
        "test_tokenizer.py::test_of_two_texts_as_long_the_second_is_cut_first",
        "room − 1 too much is kept or cut: the two texts must have exactly `room` ids together",
        old="excess = keep_a + keep_b - room",
        new="excess = keep_a + keep_b - room - 1",
    ),
    mutation(
        "first-text-cut-first",
        "tokenizer.py",
        "test_tokenizer.py::test_of_two_texts_as_long_the_second_is_cut_first",
        "where both texts are as long, the second loses the id, not the first",
        old="if keep_a > keep_b else",
        new="if keep_a >= keep_b else",
    ),
    mutation(
        "padding-on-the-left",
        "tokenizer.py",
        "test_tokenizer.py::test_padding_and_truncation_follow_the_reference",
        "BERT pads on the right: positions are absolute, so padding on the left moves every token",
        old="row + [fill[name]] * (width - len(row))",
        new="[fill[name]] * (width - len(row)) + row",
    ),
    mutation(
        "padding-is-attended",
        "tokenizer.py",
        "test_tokenizer.py::test_padding_and_truncation_follow_the_reference",
        "attention_mask is 0 on padding",
        old='"attention_mask": 0,',
        new='"attention_mask": 1,',
    ),
    mutation(
        "one-token-type",
        "tokenizer.py",
        "test_tokenizer.py::test_pairs_get_a_separator_and_token_type_1",
        "the second text and its [SEP] have token type 1",
        old="types += [1] * (len(b) + 1)",
        new="types += [0] * (len(b) + 1)",
    ),
    mutation(
        "transparent-is-black",
        "image_processor.py",
        "test_image_processor.py::test_every_pillow_mode_becomes_the_rgb_that_it_shows[RGBA, a fifth]",
        "transparency is composed over white; what lies beneath it (often black) is nothing to be seen",
        old='Image.new("RGBA", image.size, "white")',
        new='Image.new("RGBA", image.size, "black")',
    ),
    mutation(
        "depth-from-the-values-alone",
        "image_processor.py",
        "test_image_processor.py::test_every_pillow_mode_becomes_the_rgb_that_it_shows[I;16, dark]",
        "a uint16 picture is 16 bits deep even where it is dark and no value is above 255",
        old="if sixteen_bits or (",
        new="if (",
    ),
    mutation(
        "height-and-width-swapped-in-an-array",
        "image_processor.py",
        "test_image_processor.py::test_the_channel_axis_is_found",
        "(C, H, W) → (H, W, C) is transpose(1, 2, 0); (2, 1, 0) also turns the picture about its diagonal",
        old="x.transpose(1, 2, 0)",
        new="x.transpose(2, 1, 0)",
    ),
    mutation(
        "size-is-height-and-width",
        "image_processor.py",
        "test_image_processor.py::test_tensors_arrays_and_lists_hold_the_same_pixels",
        "a size is (height, width) here and (width, height) in Pillow",
        old=".resize((width, height), resample)",
        new=".resize((height, width), resample)",
    ),
    mutation(
        "crop-deficit-rounded-down",
        "image_processor.py",
        "test_image_processor.py::test_of_an_odd_deficit_the_larger_half_lies_above_and_left",
        "of an odd deficit the larger half goes above and left, as in the reference",
        old="(max(-s, 0) + 1) // 2",
        new="max(-s, 0) // 2",
    ),
    mutation(
        "crop-rounded-up",
        "image_processor.py",
        GOLDEN_PIXELS,
        "of an odd surplus the smaller half is cut off above and left: (H − size) // 2",
        old="(max(s, 0) // 2 for s in spare)",
        new="((max(s, 0) + 1) // 2 for s in spare)",
    ),
    mutation(
        "rescale-offset-forgotten",
        "image_processor.py",
        GOLDEN_PIXELS,
        "with rescale_offset 1 is taken away after scaling, so that pixels run from −1 to 1",
        old="x = x - 1\n",
        new="x = x - 0\n",
    ),
    mutation(
        "include-top-forgotten",
        "image_processor.py",
        GOLDEN_PIXELS,
        "include_top divides by image_std once more, after normalization",
        old="return x / std if self.include_top else x",
        new="return x",
    ),
    mutation(
        "texts-padded-to-the-longest",
        "processor.py",
        "test_processor.py::test_text_alone_and_pictures_alone_are_what_their_parts_give",
        "the processor pads to max_length = 64 unless told otherwise, as in the documentation",
        old='padding: bool | str = "max_length",',
        new="padding: bool | str = True,",
    ),
]

IMAGE_TOWER = [
    mutation(
        "filters-lose-over-a-tenth",
        "efficientnet.py",
        "test_efficientnet.py::test_filters_round_to_the_divisor_but_never_lose_over_a_tenth",
        "where rounding to the divisor would lose more than 10% of the channels, it goes up instead",
        old="return rounded + divisor if rounded < 0.9 * scaled else rounded",
        new="return rounded",
    ),
    mutation(
        "residual-on-first-block",
        "efficientnet.py",
        "test_efficientnet.py::test_a_stage_s_first_block_has_no_residual_even_where_it_keeps_the_width",
        "a stage's first block has no residual in the reference, even where stride and width would allow it",
        old="residual=not first,",
        new="residual=not first or (stride == 1 and round_filters(c_in, config) == "
        "round_filters(c_out, config)),",
    ),
    mutation(
        "drop-connect-the-same-everywhere",
        "efficientnet.py",
        "test_efficientnet.py::test_drop_connect_rate_grows_with_depth_and_rests_in_eval",
        "the drop rate of block b of n is rate·b/n: the first block is never dropped",
        old="drop_rate=config.drop_connect_rate * index / sum(repeats),",
        new="drop_rate=config.drop_connect_rate,",
    ),
    mutation(
        "momentum-0.99",
        "efficientnet.py",
        "test_efficientnet.py::test_batch_norm_momentum_means_what_keras_means",
        "Keras' momentum is the old average's share, PyTorch's the batch's: 0.99 there is 0.01 here",
        old="momentum=1 - config.batch_norm_momentum",
        new="momentum=config.batch_norm_momentum",
    ),
    mutation(
        "padding-on-the-wrong-side",
        "efficientnet.py",
        "test_efficientnet.py::test_a_small_kernel_of_ones_shows_the_padding",
        "TensorFlow's SAME at stride 2 pads one pixel less on the left and top: k//2 − 1 there, k//2 after",
        old="self.pad_first = (before, after, before, after)",
        new="self.pad_first = (after, before, after, before)",
    ),
    mutation(
        "padding-as-in-pytorch",
        "efficientnet.py",
        "test_efficientnet.py::test_a_small_kernel_of_ones_shows_the_padding",
        "padding=k//2 pads evenly; at stride 2 TensorFlow's SAME does not, and every window is one pixel off",
        old="kernel_size // 2 if centered else 0",
        new="kernel_size // 2",
    ),
    mutation(
        "activation-before-the-norm",
        "efficientnet.py",
        f"{PART}[vision_mean-embeddings-torch.float64]",
        "the order is convolution, BatchNorm, activation",
        old="x = self.bn(self.conv(x))  # (B, C_out, H', W')\n"
        "        return x if self.activation is None else self.activation(x)",
        new="x = self.conv(x)\n        return self.bn(x if self.activation is None else self.activation(x))",
    ),
    mutation(
        "squeeze-over-the-batch",
        "efficientnet.py",
        f"{TOWER}[vision_mean-eval-torch.float64]",
        "the squeeze is the mean over height and width of each image; over the batch, images see each other",
        old="gate = x.mean((2, 3), keepdim=True)",
        new="gate = x.mean((0, 2, 3), keepdim=True)",
    ),
    mutation(
        "squeeze-by-maximum",
        "efficientnet.py",
        "test_efficientnet.py::test_squeeze_excite_by_hand",
        "the squeeze is the mean over height and width, not the maximum",
        old="gate = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)\n",
        new="gate = x.amax((2, 3), keepdim=True)\n",
    ),
    mutation(
        "hard-sigmoid",
        "efficientnet.py",
        "test_efficientnet.py::test_squeeze_excite_by_hand",
        "the gate is a sigmoid; the hard one is MobileNetV3's",
        old="torch.sigmoid(self.expand(gate))",
        new="F.hardsigmoid(self.expand(gate))",
    ),
    mutation(
        "squeeze-of-the-expanded-width",
        "efficientnet.py",
        "test_efficientnet.py::test_squeeze_width_is_a_quarter_of_the_block_s_input",
        "squeeze-excite narrows to a quarter of the block's input channels, not of the expanded ones",
        old="squeezed = max(1, int(spec.in_channels * ",
        new="squeezed = max(1, int(hidden * ",
    ),
    mutation(
        "drop-connect-per-element",
        "efficientnet.py",
        "test_efficientnet.py::test_drop_connect_drops_whole_samples_and_keeps_the_mean",
        "one draw a sample, which drops its whole branch; one draw an element is dropout",
        old="torch.empty(len(x), 1, 1, 1, ",
        new="torch.empty(x.shape, ",
    ),
    mutation(
        "drop-connect-unscaled",
        "efficientnet.py",
        "test_efficientnet.py::test_drop_connect_drops_whole_samples_and_keeps_the_mean",
        "what is kept is divided by 1 − rate, so that its mean stays and evaluation needs no scaling",
        old="return x * (kept / keep)",
        new="return x * kept",
    ),
    mutation(
        "drop-connect-drops-the-shortcut",
        "efficientnet.py",
        "test_efficientnet.py::test_drop_connect_takes_the_branch_and_leaves_the_shortcut",
        "only the branch is dropped; the shortcut x is added afterwards and always stays",
        old="return x + self.drop_connect(h) if self.residual else h",
        new="return self.drop_connect(x + h) if self.residual else h",
    ),
    mutation(
        "residual-forgotten",
        "efficientnet.py",
        f"{PART}[vision_mean-encoder.blocks.2-torch.float64]",
        "where spec.residual is set, the block's input is added to its branch",
        old="return x + self.drop_connect(h) if",
        new="return self.drop_connect(h) if",
    ),
    mutation(
        "infinite-pixels",
        "efficientnet.py",
        "test_efficientnet.py::test_pixels_that_the_tower_cannot_take_are_refused",
        "infinity spreads as NaN does: pixels must be finite, which is more than not NaN",
        old="if not pixel_values.isfinite().all():",
        new="if pixel_values.isnan().any():",
    ),
    mutation(
        "stem-not-widened",
        "efficientnet.py",
        "test_efficientnet.py::test_parameter_counts_are_the_original_s_without_the_head[B7]",
        "the stem's 32 channels are scaled by the width coefficient like all others",
        old="round_filters(32, config),\n            3,",
        new="32,\n            3,",
    ),
    mutation(
        "pooled-by-sum",
        "efficientnet.py",
        f"{TOWER}[vision_mean-eval-torch.float64]",
        "global pooling is the mean over height and width; the sum grows with the picture",
        old="pooled = x.mean((2, 3)) if",
        new="pooled = x.sum((2, 3)) if",
    ),
]

TEXT_TOWER = [
    mutation(
        "positions-from-one",
        "bert.py",
        "test_bert_embeddings.py::test_embeddings_are_those_of_hugging_face[plain-dtype1]",
        "positions count from 0",
        old="torch.arange(T, device=x.device)[None]",
        new="torch.arange(1, T + 1, device=x.device)[None] % self.position.num_embeddings",
    ),
    mutation(
        "token-types-forgotten",
        "bert.py",
        "test_bert_embeddings.py::test_embeddings_are_those_of_hugging_face[plain-dtype1]",
        "the embedding of token type 0 is added too: it is a learnt vector, not zero",
        old="x = x + self.token_type(token_type_ids)",
        new="x = x + 0 * self.token_type(token_type_ids)",
    ),
    mutation(
        "scaled-by-the-whole-width",
        "bert.py",
        "test_attention.py::test_attention_is_that_of_hugging_face[absolute-plain-dtype1]",
        "scores are divided by √D with D the width of one head, H/N, not by √H",
        old="scores / math.sqrt(H // self.num_heads)",
        new="scores / math.sqrt(H)",
    ),
    mutation(
        "softmax-over-the-queries",
        "bert.py",
        "test_attention.py::test_attention_is_that_of_hugging_face[absolute-plain-dtype1]",
        "each query's weights sum to 1: the softmax runs over the keys, the last dimension",
        old="scores.softmax(dim=-1)",
        new="scores.softmax(dim=-2)",
    ),
    mutation(
        "heads-not-put-side-by-side",
        "bert.py",
        "test_attention.py::test_attention_is_that_of_hugging_face[absolute-plain-dtype1]",
        "(B, N, T, D) must become (B, T, N, D) before it is reshaped to (B, T, H), or tokens and heads mix",
        old="(weights @ v).transpose(1, 2).reshape(B, T, H)",
        new="(weights @ v).reshape(B, T, H)",
    ),
    mutation(
        "distance-the-wrong-way",
        "bert.py",
        "test_attention.py::test_attention_is_that_of_hugging_face[relative_key-plain-dtype1]",
        "the distance is l − r, from the query's place to the key's",
        old="place[:, None] - place[None, :]",
        new="place[None, :] - place[:, None]",
    ),
    mutation(
        "tanh-gelu",
        "bert.py",
        "test_bert.py::test_every_activation_gives_the_values_and_gradients_of_hugging_face[gelu-dtype1]",
        'hidden_act "gelu" is the exact one, x·Φ(x); the tanh approximation is called "gelu_new"',
        old="self.activation = get_activation(config.hidden_act)",
        new='self.activation = nn.GELU(approximate="tanh")',
    ),
    mutation(
        "pre-layer-norm",
        "bert.py",
        "test_bert.py::test_a_layer_and_its_feed_forward_are_those_of_hugging_face[dtype1]",
        "BERT is post-LN: normalize after the residual is added; GPT-2 normalizes before each part",
        old="""        attended, weights = self.attention(x, mask, head_mask)
        x = self.attention_norm(x + self.dropout(attended))  # (B, T, H)
        x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
""",
        new="""        attended, weights = self.attention(self.attention_norm(x), mask, head_mask)
        x = x + self.dropout(attended)
        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
""",
    ),
    mutation(
        "mask-sign",
        "bert.py",
        "test_attention.py::test_masked_tokens_get_no_weight",
        "1 means attend: what is added to the scores must be 0 there, and very negative where the mask is 0",
        old="(1 - mask.to(dtype)) * torch.finfo(dtype).min",
        new="mask.to(dtype) * torch.finfo(dtype).min",
    ),
    mutation(
        "mask-of-minus-infinity",
        "bert.py",
        "test_attention.py::test_a_row_masked_throughout_attends_evenly",
        "with −inf a row that is masked throughout becomes NaN; the smallest finite number lets it be even",
        old="(1 - mask.to(dtype)) * torch.finfo(dtype).min",
        new="mask.to(dtype).log()",
    ),
    mutation(
        "mask-on-the-queries",
        "bert.py",
        "test_attention.py::test_masked_tokens_get_no_weight",
        "the mask hides keys, the last dimension: (B, T) becomes (B, 1, 1, T), not (B, 1, T, 1)",
        old="attention_mask[:, None, None, :]",
        new="attention_mask[:, None, :, None]",
    ),
    mutation(
        "head-masks-of-the-layers-reversed",
        "bert.py",
        "test_bert.py::test_every_option_gives_the_values_and_gradients_of_hugging_face"
        "[absolute-head_mask_2d-dtype1]",
        "row i of a head mask (layers, N) is layer i's",
        old="list(head_mask.expand(layers, heads)[:, None, :, None, None])",
        new="list(head_mask.expand(layers, heads).flip(0)[:, None, :, None, None])",
    ),
    mutation(
        "pooler-on-the-mean",
        "bert.py",
        "test_bert.py::test_every_option_gives_the_values_and_gradients_of_hugging_face"
        "[absolute-plain-dtype1]",
        "BERT's pooler takes the first token, [CLS], not the mean of all",
        old="torch.tanh(self.pooler(x[:, 0]))",
        new="torch.tanh(self.pooler(x.mean(1)))",
    ),
]

LOSS_AND_MODEL = [
    mutation(
        "labels-of-another-pair",
        "contrastive.py",
        "test_contrastive.py::test_hand_computed_loss",
        "pair i's label is i: the right answers lie on the diagonal of the logits",
        old="labels = torch.arange(len(logits), device=logits.device)",
        new="labels = torch.arange(len(logits), device=logits.device).roll(1)",
    ),
    mutation(
        "one-direction-twice",
        "contrastive.py",
        "test_contrastive.py::test_hand_computed_loss",
        "image to text reads the columns: its logits are the transposed ones, with the same labels",
        old="F.cross_entropy(logits.T, labels",
        new="F.cross_entropy(logits, labels",
    ),
    mutation(
        "sigma-multiplied",
        "contrastive.py",
        "test_contrastive.py::test_temperature_divides",
        "the cosines are divided by the temperature (CLIP multiplies by its logit scale, which is 1/σ)",
        old="text_embeds @ image_embeds.T / temperature",
        new="text_embeds @ image_embeds.T * temperature",
    ),
    mutation(
        "sum-of-both-directions",
        "contrastive.py",
        "test_contrastive.py::test_hand_computed_loss",
        "the paper sums equations (1) and (2); the reference, and so this loss, takes their mean",
        old="return (text_to_image + image_to_text) / 2",
        new="return text_to_image + image_to_text",
    ),
    mutation(
        "no-label-smoothing",
        "contrastive.py",
        "test_contrastive.py::test_hand_computed_loss_with_label_smoothing",
        "label smoothing is 0.1 unless told otherwise (section 5)",
        old="label_smoothing: float = 0.1,",
        new="label_smoothing: float = 0.0,",
    ),
    mutation(
        "no-l2-norm",
        "model.py",
        "test_model.py::test_every_output_and_gradient_is_that_of_hugging_face[pairs-dtype1]",
        "both embeddings are divided by their L2 norm: logits are cosines over σ",
        old="        text_embeds = text_embeds / text_embeds.norm(dim=-1, keepdim=True)\n",
        new="",
    ),
    mutation(
        "norm-over-the-batch",
        "model.py",
        "test_model.py::test_every_output_and_gradient_is_that_of_hugging_face[pairs-dtype1]",
        "the norm runs over an embedding's own D numbers (dim −1), not over the batch",
        old="image_embeds.norm(dim=-1, keepdim=True)",
        new="image_embeds.norm(dim=0, keepdim=True)",
    ),
    mutation(
        "sigma-multiplied-in-the-logits",
        "model.py",
        "test_model.py::test_temperature_divides_the_cosines",
        "logits are the cosines divided by the temperature",
        old="text_embeds @ image_embeds.T / self.temperature",
        new="text_embeds @ image_embeds.T * self.temperature",
    ),
    mutation(
        "texts-from-the-pooler",
        "model.py",
        "test_model.py::test_text_features_are_the_projected_cls_and_not_the_pooler",
        "a text's embedding is the projected last hidden state of [CLS]; the tanh pooler has no part in it",
        old="return self.text_projection(text.last_hidden_state[:, 0])",
        new="return self.text_projection(text.pooler_output)",
    ),
    mutation(
        "a-row-of-the-key-map-lost",
        "checkpoint.py",
        "test_checkpoint.py::test_our_names_map_one_to_one_onto_the_keys_of_align_base",
        "every name here that differs from Hugging Face's needs its row",
        old='    ("pooler.", "pooler.dense."),\n',
        new="",
    ),
    mutation(
        "weights-stay-in-half-precision",
        "checkpoint.py",
        "test_checkpoint.py::test_weights_of_any_precision_come_back_as_float32",
        "weights come back as float32, whatever the file holds",
        old="tensor.float() if t.is_floating_point() else tensor",
        new="tensor",
    ),
]

TRAINING = [
    mutation(
        "mean-not-folded",
        "inference.py",
        "test_inference.py::test_features_logits_and_embeddings_are_the_model_s",
        "the running mean, scaled, goes into the bias",
        old="bias = bn.bias.double() - scale * bn.running_mean.double()",
        new="bias = bn.bias.double()",
    ),
    mutation(
        "eps-outside-the-root",
        "inference.py",
        "test_inference.py::test_features_logits_and_embeddings_are_the_model_s",
        "BatchNorm adds eps to the variance, under the root",
        old="(bn.running_var.double() + bn.eps).sqrt()",
        new="(bn.running_var.double().sqrt() + bn.eps)",
    ),
    mutation(
        "last-token-cut",
        "inference.py",
        "test_inference.py::test_what_is_not_padding_has_its_hidden_state",
        "the longest text of a group decides where it is cut, and its last token counts",
        old="t = int(lengths[rows].max())",
        new="t = max(1, int(lengths[rows].max()) - 1)",
    ),
    mutation(
        "cut-at-the-number-of-ones",
        "inference.py",
        "test_inference.py::test_every_kind_of_mask_gives_the_model_s_features",
        "only what follows the last 1 is padding on the right: a mask may have holes",
        old="((mask != 0) * torch.arange(1, T + 1, device=mask.device)).amax(1)",
        new="(mask != 0).sum(1)",
    ),
    mutation(
        "masked-throughout-is-cut",
        "inference.py",
        "test_inference.py::test_every_kind_of_mask_gives_the_model_s_features",
        "with every token masked the softmax is even over all of them: none may be left out",
        old="lengths[lengths == 0] = T",
        new="lengths[lengths == 0] = 1",
    ),
    mutation(
        "running-maximum-not-taken-over",
        "large_batch.py",
        "test_large_batch.py::test_tiled_loss_and_its_gradients_are_the_plain_ones",
        "when the running maximum grows, the sum so far must be scaled by exp(old − new)",
        old="z.mul_(torch.exp(m - larger)).add_(",
        new="z.add_(",
    ),
    mutation(
        "chunks-without-their-random-state",
        "large_batch.py",
        "test_large_batch.py::test_in_chunks_all_is_as_with_the_whole_graph[three chunks]",
        "the second pass must draw the first one's dropout, or the gradient is that of other embeddings",
        old="set_random_state(device, states[i])",
        new="pass",
    ),
    mutation(
        "batch-norm-counted-twice",
        "large_batch.py",
        "test_large_batch.py::test_in_chunks_all_is_as_with_the_whole_graph[three chunks]",
        "two passes would move BatchNorm's running statistics twice; the first one's are put back",
        old="buffer.copy_(before)",
        new="pass",
    ),
    mutation(
        "other-ranks-gradients-lost",
        "large_batch.py",
        TWO_PROCESSES,
        "each rank has a share of every embedding's gradient: without the sum the other ranks' are lost",
        old="dist.all_reduce(dy)",
        new="pass",
    ),
    mutation(
        "sums-of-two-maxima-added",
        "large_batch.py",
        TWO_PROCESSES,
        "exponentials can be added only after they are taken against one common maximum",
        old="column_z.mul_(torch.exp(local - column_m))",
        new="pass",
    ),
    mutation(
        "gradient-not-times-the-ranks",
        "large_batch.py",
        TWO_PROCESSES,
        "DistributedDataParallel divides by the number of ranks: what they hold must be larger by it",
        old="scale = grad * ctx.ranks / (2 * N)",
        new="scale = grad / (2 * N)",
    ),
    mutation(
        "all-ranks-write-the-first-rows",
        "large_batch.py",
        TWO_PROCESSES,
        "each rank's rows come after those of the ranks before it",
        old="everything[sum(sizes[:rank]) :][: len(y)] = y",
        new="everything[: len(y)] = y",
    ),
    mutation(
        "sigma-once-a-chunk",
        "large_batch.py",
        "test_large_batch.py::test_in_chunks_all_is_as_with_the_whole_graph[three chunks]",
        "the temperature enters the loss once: its gradient goes to one chunk, not to each",
        old="d_temperature * last",
        new="d_temperature",
    ),
    mutation(
        "ratio-of-a-zero-weight",
        "lamb.py",
        "test_lamb.py::test_the_ratio_is_1_for_a_weight_of_zeros_and_for_an_update_of_zeros",
        "the ratio is 1 where a norm is 0: a tensor of zeros could otherwise never leave zero",
        old="torch.where(both, weight_norm / update_norm, torch.ones_like(weight_norm))",
        new="weight_norm / update_norm",
    ),
    mutation(
        "no-bias-correction",
        "lamb.py",
        "test_lamb.py::test_two_steps_by_hand",
        "the moments start at 0: m̂ = m / (1 − β₁ᵗ) makes up for it",
        old='m_hat = m / (1 - beta1 ** state["step"])',
        new="m_hat = m.clone()",
    ),
    mutation(
        "decay-outside-the-ratio",
        "lamb.py",
        "test_lamb.py::test_two_steps_by_hand",
        "the decay λ·w belongs to the update u, whose norm the ratio takes",
        old="""add_(w, alpha=group["weight_decay"])
        if group["trust_ratio"]:
            u *= trust_ratio(w, u)
""",
        new="""mul_(1)
        if group["trust_ratio"]:
            u *= trust_ratio(w, u)
        u += group["weight_decay"] * w
""",
    ),
    mutation(
        "ratio-on-the-temperature",
        "lamb.py",
        "test_lamb.py::test_every_parameter_is_in_one_group_and_only_batch_norm_and_the_temperature_are_exempt",
        "of a scalar's update the ratio leaves only the sign, so σ could not reach 1/64 in a short run",
        old='"trust_ratio": name == "weights",',
        new='"trust_ratio": name != "batch_norm",',
    ),
    mutation(
        "decay-on-batch-norm",
        "lamb.py",
        "test_lamb.py::test_every_parameter_is_in_one_group_and_only_batch_norm_and_the_temperature_are_exempt",
        "BatchNorm's scales and shifts, and the temperature, have no weight decay",
        old='"weight_decay": weight_decay if name == "weights" else 0.0,',
        new='"weight_decay": weight_decay,',
    ),
    mutation(
        "concepts-meet-in-a-batch",
        "data.py",
        "test_data.py::test_no_image_and_no_concept_is_twice_in_a_batch_and_no_pair_twice_in_an_epoch",
        "two pairs of one concept in a batch would be each other's false negatives",
        old='return keys if pair.concept is None else [*keys, ("concept", pair.concept)]',
        new="return keys",
    ),
    mutation(
        "a-side-of-200-pixels-kept",
        "data.py",
        "test_filters.py::test_the_shorter_side_is_over_200_pixels_and_the_ratio_under_3",
        "section 3 keeps images whose shorter dimension is larger than 200 pixels: 200 goes",
        old="if min(width, height) <= MIN_SIDE:",
        new="if min(width, height) < MIN_SIDE:",
    ),
    mutation(
        "warm-up-from-zero",
        "train.py",
        "test_train.py::test_the_rate_rises_to_its_peak_and_falls_to_zero_after_the_last_step",
        "step 1 has a rate already, peak/warm-up; with 0 the first step would teach nothing",
        old="return peak * step / warmup",
        new="return peak * (step - 1) / warmup",
    ),
    mutation(
        "floor-of-the-wrong-target",
        "train.py",
        "test_train.py::test_no_loss_is_below_the_floor_and_a_perfect_one_is_on_it",
        "label smoothing spreads ε over all N texts, the right one too: its target is 1 − ε + ε/N",
        old="right = 1 - smoothing + wrong",
        new="right = 1 - smoothing",
    ),
    mutation(
        "ties-are-won",
        "retrieval.py",
        "test_recall.py::test_a_collapsed_model_gets_chance",
        "ties are taken in random order; a model that gives everything one embedding must get chance, not 1",
        old="wrong[rows] = tied.sum(1) - right_ties[rows]",
        new="wrong[rows] = 0",
    ),
    mutation(
        "recall-not-normalized",
        "retrieval.py",
        "test_recall.py::test_agrees_with_a_plain_sort_whatever_the_block",
        "nearest is by cosine: texts are normalized too, or the longest embedding wins every query",
        old='texts = F.normalize(text_embeds.to("cpu", precision), dim=-1)',
        new='texts = text_embeds.to("cpu", precision)',
    ),
]

MUTATIONS = [*INPUTS, *IMAGE_TOWER, *TEXT_TOWER, *LOSS_AND_MODEL, *TRAINING]
