"""What a TESSERA model is: shapes, statistics and rules, as data. No code path per model.

Sizes follow docs/data_flow.md: D width, H heads, F feed-forward width, E embedding width, C bands.
The released shapes and statistics are those of ucam-eo/tessera at commit ef4f0ac.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .errors import InputError
from .untrusted.readers import plain_name, shown
from .untrusted.suggest import closest

S2_BANDS = ("B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12")
S1_BANDS = ("VV", "VH")
MAX_DOY = 366
MAX_SEQUENCE = 256  # the longest sequence any v1.1 or v2 model reads; more dates are cut to it

Row = tuple[float, ...]

# What a spec may say. It can come from a file, so a value outside is refused, whoever wrote it.
# The largest sizes are about ten times those of v2-teacher.
_SIZES = {
    "d_model": 1 << 16,
    "num_layers": 1 << 10,
    "num_heads": 1 << 10,
    "ff_dim": 1 << 18,
    "out_dim": 1 << 16,
    "saved_dim": 1 << 16,
}
_RULES = {
    "sampling": ("v2", "v1.1", "v1.0"),
    "pooling": ("softmax", "custom_gru", "torch_gru"),
    "reducer": ("mlp", "linear"),
}
_FLAGS = ("pre_norm", "qk_norm", "final_norm", "dummy_orbit")
_PREFIXES = 64
_MEANS = (-1e6, 1e6)  # of raw values, which are integers of 16 bits
_STDS = (1e-3, 1e6)
_FLOORS = (1e-30, 1e-3)  # normal in float32, and below any scale that codes need


@dataclass(frozen=True)
class Statistics:
    """Normalisation (x - mean) / (std + 1e-9), computed in float32.

    ``s1_mean`` and ``s1_std`` have one row per orbit, ascending then descending; a model with
    pooled statistics repeats the row. InputError for rows of other lengths and for values that no
    raw observations have.
    """

    s2_mean: Row
    s2_std: Row
    s1_mean: tuple[Row, Row]
    s1_std: tuple[Row, Row]

    def __post_init__(self) -> None:
        for name, limits in (("s2_mean", _MEANS), ("s2_std", _STDS)):
            _check_row(name, getattr(self, name), len(S2_BANDS), limits)
        for name, limits in (("s1_mean", _MEANS), ("s1_std", _STDS)):
            rows = getattr(self, name)
            if not isinstance(rows, tuple) or len(rows) != 2:
                raise InputError(f"{name}: expected two rows, one per orbit, got {shown(rows)}")
            for row in rows:
                _check_row(name, row, len(S1_BANDS), limits)


@dataclass(frozen=True)
class ModelSpec:
    """Everything that turns packed tokens and a set of named tensors into an embedding.

    InputError names the first field that no model can have: every spec that exists is sound.
    """

    name: str
    d_model: int
    num_layers: int
    num_heads: int
    ff_dim: int
    out_dim: int  # width of the reducer's output
    saved_dim: int  # leading dimensions that are the embedding
    statistics: Statistics
    sampling: str  # "v2" | "v1.1" | "v1.0": how dates become a sequence (packing.py)
    pre_norm: bool = False
    qk_norm: bool = False  # RMSNorm on q and k; q, k, v are then separate projections
    pooling: str = "softmax"  # "softmax" | "custom_gru" | "torch_gru"
    reducer: str = "mlp"  # "mlp": Linear LayerNorm ReLU Linear | "linear"
    final_norm: bool = True  # LayerNorm without parameters on the reducer's output
    fusion_layers: int = 0  # transformer layers over the two tokens [S2, S1]
    matryoshka: tuple[int, ...] = ()  # prefixes of the embedding that stand alone
    absmax_floor: float = 1e-12  # int8: scale = max(max|e|, absmax_floor) / 127 ...
    scale_floor: float = 0.0  # ... and at least scale_floor; one of the two floors is not 0
    dummy_orbit: bool = False  # an orbit without dates becomes one (0, 0) row of day 180

    def __post_init__(self) -> None:
        if not plain_name(self.name) or len(self.name) > 100 or not self.name.isprintable():
            raise InputError(
                f"model: name: expected 1 to 100 characters that can name a file, got "
                f"{shown(self.name)}"
            )
        for name, most in _SIZES.items():
            self._expect_whole(name, 1, most)
        self._expect_whole("fusion_layers", 0, _SIZES["num_layers"])
        for name, known in _RULES.items():
            self._expect(name, " or ".join(known), getattr(self, name) in known)
        for name in _FLAGS:
            self._expect(name, "True or False", isinstance(getattr(self, name), bool))
        if not isinstance(self.statistics, Statistics):
            self._expect("statistics", "Statistics", False)
        self._check_widths()
        for name in ("absmax_floor", "scale_floor"):
            value = getattr(self, name)
            fits = _is_number(value) and (value == 0 or _FLOORS[0] <= value <= _FLOORS[1])
            self._expect(name, f"0 or {_FLOORS[0]} to {_FLOORS[1]}", fits)
        if self.absmax_floor == self.scale_floor == 0:
            self._expect("scale_floor", "more than 0, as absmax_floor is 0", False)

    def _check_widths(self) -> None:
        """What the sizes must be to each other."""
        if self.d_model % self.num_heads or self.d_model % 2:
            raise InputError(
                f"model {self.name}: d_model {self.d_model} must be even and a multiple of its "
                f"{self.num_heads} heads"
            )
        if self.fusion_layers and self.d_model % 4:
            self._expect("d_model", "a multiple of the 4 heads of the fusion layers", False)
        self._expect(
            "saved_dim", f"at most out_dim, {self.out_dim}", self.saved_dim <= self.out_dim
        )
        widths = self.matryoshka
        fits = isinstance(widths, tuple) and len(widths) <= _PREFIXES
        fits = fits and all(type(n) is int for n in widths)
        fits = fits and all(a < b for a, b in zip((0, *widths), widths, strict=False))
        fits = fits and max(widths, default=0) <= self.saved_dim
        expected = f"at most {_PREFIXES} rising widths of 1 to {self.saved_dim}"
        self._expect("matryoshka", expected, fits)

    def _expect_whole(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        fits = type(value) is int and least <= value <= most
        self._expect(name, f"a whole number of {least} to {most}", fits)

    def _expect(self, name: str, expected: str, fits: bool) -> None:
        if not fits:
            got = shown(getattr(self, name))
            raise InputError(f"model {self.name}: {name}: expected {expected}, got {got}")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads

    @property
    def needs_steps(self) -> bool:
        """A recurrent pooling reads the padded sequence in order, fillers included."""
        return self.pooling != "softmax"

    @property
    def empty_steps(self) -> int:
        """Length of the all-zero sequence that stands for a stream without observations."""
        return 8 if self.sampling == "v1.1" else 1

    def to_json(self) -> dict[str, Any]:
        """A plain dict that :meth:`from_json` reads back exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> "ModelSpec":
        """Inverse of :meth:`to_json`; InputError names what is missing, foreign or wrong."""
        given = _fields_of(cls, "spec", data)
        rows = _fields_of(Statistics, "statistics", given["statistics"])
        statistics = Statistics(**{name: _tuples(value) for name, value in rows.items()})
        widths = _tuples(given["matryoshka"])
        return cls(**{**given, "matryoshka": widths, "statistics": statistics})

    def prefixes(self) -> tuple[int, ...]:
        """Output widths that may be asked for by ``dims``."""
        return tuple(sorted({*self.matryoshka, self.saved_dim}))

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The official parameter names (without ``_orig_mod.``) and their shapes."""
        shapes: dict[str, tuple[int, ...]] = {}
        for stream, bands in (("s2_backbone", S2_BANDS), ("s1_backbone", S1_BANDS)):
            shapes |= self._stream_shapes(stream, len(bands))
        d = self.d_model
        if self.fusion_layers:
            shapes["fusion_modality_embed"] = (2, d)
            for i in range(self.fusion_layers):
                shapes |= _layer_shapes(f"fusion_transformer.layers.{i}", d, 2 * d, d // 4)
        if self.reducer == "linear":
            return shapes | _linear_shapes("dim_reducer.0", 2 * d, self.out_dim)
        shapes |= _linear_shapes("dim_reducer.0", 2 * d, 4 * d)
        shapes |= _norm_shapes("dim_reducer.1", 4 * d)
        return shapes | _linear_shapes("dim_reducer.4", 4 * d, self.out_dim)

    def layer_name(self, stream: str, i: int) -> str:
        """Official prefix of encoder layer ``i``: QK-norm students have no ``layers``."""
        plain_list = self.qk_norm and not self.pre_norm
        return f"{stream}.transformer_encoder.{'' if plain_list else 'layers.'}{i}"

    def _stream_shapes(self, stream: str, bands: int) -> dict[str, tuple[int, ...]]:
        d = self.d_model
        shapes = _linear_shapes(f"{stream}.embedding.0", bands, d)
        shapes |= _linear_shapes(f"{stream}.embedding.2", d, d)
        for i in range(self.num_layers):
            head_dim = self.head_dim if self.qk_norm else None
            shapes |= _layer_shapes(self.layer_name(stream, i), d, self.ff_dim, head_dim)
        pool = f"{stream}.attn_pool"
        shapes |= _linear_shapes(f"{pool}.query", d, 1)
        if self.pooling == "custom_gru":
            cell = f"{pool}.temporal_context.gru_cell"
            shapes |= {f"{cell}.W_{g}.weight": (d, d) for g in ("ir", "iz", "ih", "hr", "hz", "hh")}
            shapes |= {f"{cell}.b_{g}": (d,) for g in "rzh"}
            shapes |= _norm_shapes(f"{pool}.layer_norm", d)
        elif self.pooling == "torch_gru":
            cell = f"{pool}.temporal_context"
            shapes |= {f"{cell}.weight_{k}_l0": (3 * d, d) for k in ("ih", "hh")}
            shapes |= {f"{cell}.bias_{k}_l0": (3 * d,) for k in ("ih", "hh")}
        return shapes


def _is_number(value: Any) -> bool:
    """A float or int, finite; True and False are none."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _check_row(name: str, row: Any, count: int, limits: tuple[float, float]) -> None:
    least, most = limits
    if not isinstance(row, tuple) or len(row) != count:
        raise InputError(f"{name}: expected {count} numbers, one per band, got {shown(row)}")
    for value in row:
        if not _is_number(value) or not least <= value <= most:
            raise InputError(f"{name}: expected numbers of {least} to {most}, got {shown(value)}")


def _fields_of(kind: Any, what: str, data: Any) -> dict[str, Any]:
    """``data`` if it is a dict of exactly the fields of a dataclass."""
    if not isinstance(data, dict):
        raise InputError(f"{what}: expected an object, got {shown(data)}")
    names = {item.name for item in fields(kind)}
    if data.keys() == names:
        return data
    absent, foreign = sorted(names - data.keys()), [name for name in data if name not in names]
    which = f"without {absent[0]}" if absent else f"also {shown(foreign[0])}"
    raise InputError(f"{what}: expected exactly {', '.join(sorted(names))}, got them {which}")


def _tuples(value: Any, depth: int = 2) -> Any:
    """Lists as tuples, to the depth that a spec has; what is no list stays."""
    if depth and isinstance(value, list | tuple):
        return tuple(_tuples(item, depth - 1) for item in value)
    return value


def _linear_shapes(name: str, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def _norm_shapes(name: str, n: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n,), f"{name}.bias": (n,)}


def _layer_shapes(name: str, d: int, f: int, qk_head_dim: int | None) -> dict[str, tuple[int, ...]]:
    """One transformer layer; ``qk_head_dim`` None means the joint in_proj of torch's layer."""
    if qk_head_dim is None:
        attn = f"{name}.self_attn"
        shapes: dict[str, tuple[int, ...]] = {
            f"{attn}.in_proj_weight": (3 * d, d),
            f"{attn}.in_proj_bias": (3 * d,),
        }
        shapes |= _linear_shapes(f"{attn}.out_proj", d, d)
    else:
        shapes = {}
        for proj in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear_shapes(f"{name}.{proj}", d, d)
        shapes |= {f"{name}.{q}_norm.weight": (qk_head_dim,) for q in "qk"}
    shapes |= _linear_shapes(f"{name}.linear1", d, f) | _linear_shapes(f"{name}.linear2", f, d)
    return shapes | _norm_shapes(f"{name}.norm1", d) | _norm_shapes(f"{name}.norm2", d)


def _row(numbers: str) -> Row:
    """A row of a table that is easier to read, and to compare, as a line of text."""
    return tuple(map(float, numbers.split()))


_V2_S2 = (
    _row(
        "1633.0042 1341.1090 1539.5536 3054.8269 3117.4658 "
        "2004.1648 2694.7275 2945.1504 2266.6079 1657.3094"
    ),
    _row(
        "1999.4603 2014.7549 1929.2201 1754.2493 1649.9807 "
        "1936.8988 1748.6041 1708.6991 1207.5250 1108.6046"
    ),
)
STATISTICS = {
    "v2": Statistics(
        *_V2_S2,
        s1_mean=((5909.3921, 3405.0322), (5816.1382, 3277.7576)),
        s1_std=((1507.1750, 1531.2615), (1554.6475, 1546.4733)),
    ),
    "v2-teacher": Statistics(
        *_V2_S2,
        s1_mean=((5862.7652, 3341.3949),) * 2,
        s1_std=((1531.8051, 1540.2014),) * 2,
    ),
    "v1.1-mpc": Statistics(
        s2_mean=_row(
            "2683.4553 2223.3630 2432.0950 3633.1970 3602.1755 "
            "3006.4324 3400.2710 3515.6392 2456.9163 1983.8783"
        ),
        s2_std=_row(
            "2739.5217 2846.2993 2690.8250 2290.0439 2088.8970 "
            "2673.1106 2381.4521 2229.5225 1601.0942 1495.3545"
        ),
        s1_mean=((5588.3291, 3025.6270), (5552.9683, 2955.0520)),
        s1_std=((1713.4646, 1693.0471), (1685.5857, 1677.6414)),
    ),
    "v1.1-aws": Statistics(
        s2_mean=_row(
            "2793.6589 2356.7776 2551.0496 3741.9229 3713.7844 "
            "3120.1997 3516.3342 3637.0342 2501.0283 2038.1504"
        ),
        s2_std=_row(
            "2810.0093 2933.8835 2755.6360 2344.5027 2145.7986 "
            "2743.9019 2438.8601 2286.5977 1680.7367 1585.5529"
        ),
        s1_mean=((5697.0859, 2838.6687), (5759.1367, 2873.2854)),
        s1_std=((1671.3737, 1789.4116), (1583.2858, 1747.8390)),
    ),
    "v1.0": Statistics(
        s2_mean=_row(
            "1711.0938 1308.8511 1546.4543 3010.1293 3106.5083 "
            "2068.3044 2685.0845 2931.5889 2514.6928 1899.4922"
        ),
        s2_std=_row(
            "1926.1026 1862.9751 1803.1792 1741.7837 1677.4543 "
            "1888.7862 1736.3090 1715.8104 1514.5199 1398.4779"
        ),
        s1_mean=((5484.0407, 3003.7812),) * 2,
        s1_std=((1871.2334, 1726.0670),) * 2,
    ),
}


def _v2(name: str, d: int, layers: int, f: int) -> ModelSpec:
    return ModelSpec(
        name,
        d,
        layers,
        4,
        f,
        128,
        128,
        STATISTICS["v2"],
        "v2",
        matryoshka=(16, 32, 64, 128),
    )


def _v1_1(name: str) -> ModelSpec:
    return ModelSpec(
        name,
        768,
        4,
        4,
        2048,
        192,
        128,
        STATISTICS[name],
        "v1.1",
        pooling="custom_gru",
        final_norm=False,
        absmax_floor=0.0,
        scale_floor=1e-8,
    )


def _v1_0(name: str, layers: int, heads: int, pooling: str) -> ModelSpec:
    return ModelSpec(
        name,
        512,
        layers,
        heads,
        4096,
        128,
        128,
        STATISTICS["v1.0"],
        "v1.0",
        pooling=pooling,
        reducer="linear",
        final_norm=False,
        absmax_floor=0.0,
        scale_floor=1e-8,
        dummy_orbit=name == "v1.0-qat",
    )


_RELEASED = (
    _v2("v2-nano", 144, 2, 384),
    _v2("v2-small", 256, 4, 1024),
    _v2("v2-medium", 440, 4, 1792),
    _v2("v2-large", 640, 4, 2560),
    ModelSpec(
        "v2-teacher",
        4096,
        4,
        4,
        16384,
        1024,
        1024,
        STATISTICS["v2-teacher"],
        "v2",
        pre_norm=True,
        qk_norm=True,
        fusion_layers=2,
    ),
    _v1_1("v1.1-mpc"),
    _v1_1("v1.1-aws"),
    _v1_0("v1.0-qat", 4, 4, "custom_gru"),
    _v1_0("v1.0", 8, 8, "torch_gru"),
)

RELEASED: dict[str, ModelSpec] = {s.name: s for s in _RELEASED}
# Our own weights, part of the package; only the whole embedding was trained.
DEMO = replace(RELEASED["v2-nano"], name="demo-nano", matryoshka=(128,))
NAMED = {**RELEASED, DEMO.name: DEMO}  # every name that has weights


def released(name: str) -> ModelSpec:
    """The released model ``name``; InputError lists the names there are."""
    if name not in RELEASED:
        near = closest(name, RELEASED)
        raise InputError(f"model: expected one of {', '.join(RELEASED)}, got {name!r}.{near}")
    return RELEASED[name]


def variant(base: str, **changes: Any) -> ModelSpec:
    """A copy of a released spec with other sizes: ``variant("v2-nano", ff_dim=80)``.

    Prefixes of the embedding that are wider than the copy's ``saved_dim`` are left out.
    """
    spec = released(base)
    width = changes.get("saved_dim", spec.saved_dim)
    fitting = tuple(n for n in spec.matryoshka if isinstance(width, int) and n <= width)
    return replace(spec, **{"matryoshka": fitting, **changes})
