# slmctl for the processor, with the GGUF converter inside:  make image TORCH_INDEX=URL
#   docker run --rm -v "$PWD:/work" --user "$(id -u)" slmctl run
#   docker run --rm -v "$PWD:/work" --user "$(id -u)" -p 8080:8080 slmctl serve --host 0.0.0.0
ARG PYTHON_TAG=3.12-slim-bookworm

FROM python:${PYTHON_TAG} AS build
# The index of torch's CPU wheels (pytorch.org's install page has it); without it torch brings several GB of CUDA.
ARG TORCH_INDEX
# For an index of one's own, such as a mirror inside a company.
ARG PIP_INDEX_URL
# llama.cpp for any x86-64 with AVX2, not for the processor that builds; another one where the image must run elsewhere.
ARG CMAKE_ARGS="-DGGML_NATIVE=OFF"
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends cmake g++ \
 && rm -rf /var/lib/apt/lists/* \
 && python -m venv /opt/slmctl
ENV PATH=/opt/slmctl/bin:$PATH
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} 'torch>=2.10'
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY slmctl/ slmctl/
COPY templates/ templates/
COPY examples/ examples/
# The converter is kept beside the environment, where every user of the image finds it.
RUN pip install --no-cache-dir '.[all]' \
 && python -c 'from slmctl.cli import doctor_checks; print(*doctor_checks.fix())'

FROM python:${PYTHON_TAG}
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin slmctl
COPY --from=build /opt/slmctl /opt/slmctl
ENV PATH=/opt/slmctl/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /work
EXPOSE 8080
# Of serve, on its default port; other commands answer nothing, and end before anyone asks twice.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
 CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["slmctl"]
CMD ["--help"]
