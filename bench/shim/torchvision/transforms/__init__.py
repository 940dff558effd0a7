class _Absent:
    """Importable, not usable."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError("a stand-in for torchvision, which has no build for this machine")


class Normalize(_Absent): ...


class Compose(_Absent): ...


class RandomResizedCrop(_Absent): ...


class ToTensor(_Absent): ...


class Resize(_Absent): ...


class CenterCrop(_Absent): ...


class ColorJitter(_Absent): ...


class Grayscale(_Absent): ...


class InterpolationMode:
    BICUBIC, BILINEAR, NEAREST = "bicubic", "bilinear", "nearest"
