"""Write image_processor.npz: what the image processor of transformers 4.37.2 gives. Run under that version:

python tests/reference/make_image_processor.py

For each case `<case>/options` (JSON), `<case>/input` (H, W, 3) and `<case>/output` (1, 3, h, w).
"""

import json
from pathlib import Path

import numpy as np
import transformers
from transformers import EfficientNetImageProcessor

ALIGN_BASE = dict(
    resample=2,
    do_center_crop=True,
    rescale_factor=1 / 127.5,
    rescale_offset=True,
    do_normalize=False,
    include_top=False,
)
SMALL = dict(size=[19, 23])
CASES = {
    "defaults, small": SMALL,
    "align-base": ALIGN_BASE | dict(size=dict(height=26, width=26), crop_size=dict(height=21, width=21)),
    **{f"filter {resample}": SMALL | dict(resample=resample) for resample in range(6)},
    "enlarged": dict(size=64, resample=3),
    "cropped": dict(do_resize=False, do_center_crop=True, crop_size=[16, 31]),
    "padded": SMALL | dict(do_center_crop=True, crop_size=[25, 11]),
    "nothing": dict(do_resize=False, do_rescale=False, do_normalize=False, include_top=False),
    "not rescaled": SMALL
    | dict(do_rescale=False, image_mean=[123.7, 116.3, 103.5], image_std=[58.4, 57.1, 57.4]),
    "one mean": SMALL | dict(image_mean=0.4, image_std=0.3),
    "not normalized": SMALL | dict(do_normalize=False, image_std=[0.2, 0.3, 0.7]),
    "no top": SMALL | dict(include_top=False, rescale_offset=True, rescale_factor=0.01),
}


def main() -> None:
    assert transformers.__version__ == "4.37.2", (
        f"these are 4.37.2's numbers, not {transformers.__version__}'s"
    )
    random = np.random.default_rng(0)
    smooth = np.linspace(0, 200, 37)[:, None, None] + np.linspace(-60, 55, 53)[None, :, None]
    photo = np.clip(smooth + random.normal(0, 30, (37, 53, 3)), 0, 255).astype(np.uint8)
    cases = {name: (options, photo) for name, options in CASES.items()}
    cases["fractions"] = (SMALL | dict(do_rescale=False, resample=2), (photo / 255).astype(np.float32))
    cases["rescaled fractions"] = (SMALL | dict(resample=2), (photo / 255).astype(np.float32))
    cases["whole floats"] = (SMALL | dict(resample=1), photo.astype(np.float64))
    arrays = {}
    for name, (options, picture) in cases.items():
        output = EfficientNetImageProcessor(**options)(picture, return_tensors="np").pixel_values
        arrays[f"{name}/options"] = np.array(json.dumps(options))
        arrays[f"{name}/input"] = picture
        arrays[f"{name}/output"] = output.astype(np.float32)
    np.savez_compressed(Path(__file__).with_name("image_processor.npz"), **arrays)


if __name__ == "__main__":
    main()
