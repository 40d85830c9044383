"""Names of the processor's features in a table: the words and bits of `native/cpu.h`, named as in /proc/cpuinfo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_NAMES: tuple[dict[int, str], ...] = (
    {0: "sse3", 1: "pclmulqdq", 9: "ssse3", 12: "fma", 13: "cx16", 19: "sse4_1", 20: "sse4_2", 22: "movbe",
     23: "popcnt", 25: "aes", 26: "xsave", 27: "osxsave", 28: "avx", 29: "f16c", 30: "rdrand"},
    {0: "fpu", 4: "tsc", 8: "cx8", 15: "cmov", 19: "clflush", 23: "mmx", 24: "fxsr", 25: "sse", 26: "sse2"},
    {0: "fsgsbase", 3: "bmi1", 4: "hle", 5: "avx2", 8: "bmi2", 9: "erms", 11: "rtm", 16: "avx512f", 17: "avx512dq",
     18: "rdseed", 19: "adx", 21: "avx512ifma", 23: "clflushopt", 24: "clwb", 26: "avx512pf", 27: "avx512er",
     28: "avx512cd", 29: "sha_ni", 30: "avx512bw", 31: "avx512vl"},
    {0: "prefetchwt1", 1: "avx512vbmi", 5: "waitpkg", 6: "avx512_vbmi2", 8: "gfni", 9: "vaes", 10: "vpclmulqdq",
     11: "avx512_vnni", 12: "avx512_bitalg", 14: "avx512_vpopcntdq", 22: "rdpid", 25: "cldemote", 27: "movdiri",
     28: "movdir64b"},
    {2: "avx512_4vnniw", 3: "avx512_4fmaps", 4: "fsrm", 8: "avx512_vp2intersect", 14: "serialize", 16: "tsxldtrk",
     22: "amx_bf16", 23: "avx512_fp16", 24: "amx_tile", 25: "amx_int8"},
    {4: "avx_vnni", 5: "avx512_bf16", 10: "fzrm", 11: "fsrs", 12: "fsrc", 21: "amx_fp16", 23: "avx_ifma"},
    {4: "avx_vnni_int8", 5: "avx_ne_convert", 8: "amx_complex", 10: "avx_vnni_int16", 14: "prefetchiti", 19: "avx10"},
    {0: "xsaveopt", 1: "xsavec", 2: "xgetbv1"},
    {0: "lahf_lm", 5: "abm", 6: "sse4a", 8: "3dnowprefetch", 11: "xop", 15: "lwp", 16: "fma4", 21: "tbm"},
    {11: "syscall", 22: "mmxext", 25: "fxsr_opt", 27: "rdtscp", 30: "3dnowext", 31: "3dnow"},
    {0: "clzero"},
    {0: "xcr0:x87", 1: "xcr0:sse", 2: "xcr0:avx", 5: "xcr0:opmask", 6: "xcr0:zmm_hi256", 7: "xcr0:hi16_zmm",
     17: "xcr0:tilecfg", 18: "xcr0:tiledata"},
)  # fmt: skip
_LEVELS = (
    ("x86-64-v2", "cx16 lahf_lm popcnt sse3 sse4_1 sse4_2 ssse3"),
    ("x86-64-v3", "avx avx2 bmi1 bmi2 f16c fma abm movbe osxsave"),
    ("x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
)
"""Levels of the x86-64 psABI, each with what it adds."""


def names(words: Sequence[int]) -> list[str]:
    """The features, in the order of their words; bits without a name as `word:bit`."""
    return [_NAMES[number].get(bit, f"{number}:{bit}") if number < len(_NAMES) else f"{number}:{bit}"
            for number, word in enumerate(words) for bit in range(32) if word >> bit & 1]  # fmt: skip


def level(features: Iterable[str]) -> str:
    """The highest level of the psABI that these features reach."""
    have, reached = set(features), "x86-64"
    for name, added in _LEVELS:
        if not have.issuperset(added.split()):
            break
        reached = name
    return reached
