"""`examples/bucket.py` over a bucket: moto's server holds the files,
and a Ray of this machine answers them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, TESTS, tiny

import slmctl
from slmctl.stages.predict import ray_answers

pytest.importorskip("ray")
RELEASE = str(TESTS / "fixtures" / "0.1.0" / "published")  # a model of 7,000 weights


@pytest.mark.slow
def test_the_files_of_a_bucket_are_answered_into_a_bucket(s3: str, tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    fs = pytest.importorskip("pyarrow.fs")
    bucket: Any = fs.S3FileSystem(
        access_key="id", secret_key="key", endpoint_override=s3, region="us-east-1"
    )
    here = f"models/{tmp_path.name}"
    texts = [text for text, _ in tiny.rows(9, seed=3)]
    for name, part in (("a", texts[:5]), ("day=1/b", texts[5:])):
        parquet.write_table(
            pa.table({"text": part}), f"{here}/in/{name}.parquet", filesystem=bucket
        )
    keys = {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_REGION": "us-east-1",
        "RAY_ADDRESS": "local",
    }
    # `local`: Ray would else join any cluster that runs here, such as that of a test beside this
    # one
    command = [
        sys.executable,
        ROOT / "examples" / "bucket.py",
        RELEASE,
        f"s3://{here}/in/",
        f"s3://{here}/out/",
    ]
    env = tiny.environment(**keys, **ray_answers.SWITCHES, **ray_answers.LOOPBACK)
    tiny.ok(
        subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    )
    rows = parquet.read_table(f"{here}/out", filesystem=bucket).to_pylist()
    with slmctl.Answerer(RELEASE) as model:
        expected = {
            (text, each.answer) for text, each in zip(texts, model.answer(texts), strict=True)
        }
    assert {(row["text"], row["answer"]) for row in rows} == expected
