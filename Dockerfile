# slackmerge in a container: the same Makefile, the same lock. Debian's image has Python 3.11, Ubuntu's CUDA image 3.12;
# the lock resolves to the same versions on both (docs/explanation/security.md).
#
#   docker build -t slackmerge .                                     a CPU image
#   docker build -t slackmerge:cuda --build-arg TORCH_BACKEND=cu130 --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 .
#   docker run --rm -v $PWD/outputs:/slackmerge/outputs -v $PWD/store:/slackmerge/store slackmerge
#   docker run --rm --gpus all slackmerge:cuda make reproduce EXPERIMENT=smollm2
ARG BASE=debian:bookworm-slim
FROM ${BASE}

# A compiler: DeepSpeed builds its extensions when they are first used. Python with venv; git for the commit in the records.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev g++ make git ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home researcher \
    && install -d -o researcher /slackmerge
USER researcher
WORKDIR /slackmerge

# The lock first: an image is built anew only from what changed.
ARG TORCH_BACKEND=cpu
ENV UV_TORCH_BACKEND=${TORCH_BACKEND} UV_NO_CACHE=1
COPY --chown=researcher Makefile requirements.lock pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY --chown=researcher slackmerge slackmerge
COPY --chown=researcher common common
COPY --chown=researcher train train
COPY --chown=researcher merge merge
COPY --chown=researcher eval eval
COPY --chown=researcher pipeline pipeline
RUN make .venv/.ready
COPY --chown=researcher . .

CMD ["make", "reproduce"]
