# edgepeft for CI: everything that export, quantize, validate, bench, check and report need, with CPU torch.
#   docker build --tag edgepeft .
#   docker run --rm --volume "$PWD:/work" edgepeft check bundle --baseline last-release
# A smaller image for gates that load neither torch nor PEFT: docker build --build-arg EXTRAS=tools,report .
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm
ARG EXTRAS=all
# hadolint ignore=DL3064 # TOKENIZERS_PARALLELISM holds no token
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 TOKENIZERS_PARALLELISM=false TQDM_DISABLE=1
COPY . /src
# The CPU index first, so that torch comes without CUDA's 3 GB; all else comes from PyPI.
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu --constraint /src/constraints.txt "/src[${EXTRAS}]" \
    && rm -rf /src \
    && useradd --uid 1000 --create-home edgepeft
USER 1000
WORKDIR /work
ENTRYPOINT ["edgepeft"]
CMD ["--help"]
