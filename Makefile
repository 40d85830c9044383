# make demo   without Docker and without a hub: bake dummy models of real size, start them naively and
#             baked, print and draw the comparison
# make test   all checks; those of Docker only if an engine answers
# make test-transformers4   the tests without Docker, beside the oldest transformers that Prebake works with
# make image  docker buildx bake (also: make baseline, make weights); MODELS_FILE=models.dummy.toml needs no hub
#
# The first three create .venv if necessary. PYTHON selects the interpreter; torch comes from the wheels folder in pip's
# configuration, else from PyTorch's CPU index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := dist/demo
ROUNDS ?= 3
# number of parallel test processes; 0 runs all tests in one process
WORKERS ?= auto
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# a folder of wheels from pip's configuration (`pip config set global.find-links DIR`), if it contains torch
WHEELS := $(firstword $(foreach dir,$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null),$(if $(wildcard $(dir)/torch-*.whl),$(dir))))

.PHONY: demo test test-transformers4 check format image baseline weights measure-image clean
.DELETE_ON_ERROR:

demo: $(VENV)/ready
	@echo "[1/3] Bake: generate random weights of real size (BLIP, EasyOCR), convert them to safetensors and prove them; 1 minute"
	$(BIN)/prebake bake --models models.dummy.toml --output $(DEMO)/models --cache $(DEMO)/cache caption ocr
	@echo "[2/3] Write the same checkpoints, as upstream publishes them, for the naive service"
	$(BIN)/prebake fetch --models models.dummy.toml --cache $(DEMO)/cache --output $(DEMO)/checkpoints caption ocr
	@echo "[3/3] Start both services in turn, $(ROUNDS) times each after a warm-up, and compare; 1 to 2 minutes"
	$(BIN)/prebake measure --rounds $(ROUNDS) --output dist \
	  --command 'prebake serve --root $(DEMO)/models --port {port}' \
	  --baseline-command 'python -m image_analyzer.naive --checkpoints $(DEMO)/checkpoints --port {port}'

test: check
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadgroup

# A folder of packages that comes before those of the environment. diffusers does not work with this huggingface_hub: its
# tests are skipped
TRANSFORMERS4 := $(VENV)/transformers4

test-transformers4: $(TRANSFORMERS4)/ready
	PYTHONPATH=$(CURDIR)/$(TRANSFORMERS4) $(BIN)/pytest --numprocesses $(WORKERS) --dist loadgroup -m 'not docker' $(TESTS)

$(TRANSFORMERS4)/ready: $(VENV)/ready
	rm -rf $(@D)
	$(BIN)/pip install --quiet --no-deps --target $(@D) transformers==4.57.6 huggingface-hub==0.36.2 tokenizers==0.22.2
	touch $@

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

image baseline weights:
	$(BAKE) $(if $(filter image,$@),default,$@)

measure-image: $(VENV)/ready image baseline
	$(BIN)/prebake measure --image prebake:latest --baseline prebake-baseline:latest --rounds $(ROUNDS) --output dist/image

# buildx needs permission to read a folder outside the checkout
BAKE := $(if $(WHEELS),WHEELS=$(WHEELS) TORCH_INDEX= )docker buildx bake $(if $(WHEELS),--allow=fs.read=$(WHEELS))

$(VENV)/ready: pyproject.toml constraints.txt runtime/pyproject.toml build/pyproject.toml service/pyproject.toml
	@echo "Setting up $(VENV): downloads and installs torch, transformers, easyocr and the tools (about 2 GB, minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --constraint constraints.txt $(if $(WHEELS),--find-links $(WHEELS),--extra-index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev --editable 'runtime[transformers,easyocr]' --editable build --editable service
# PyPI has torchaudio for CUDA only: its compiled part does not load beside a torch for the CPU, the rest needs none
	$(BIN)/pip install --quiet --no-deps torchcrepe torchaudio
	rm -rf $(VENV)/lib/python*/site-packages/torchaudio/lib
	touch $@

clean:
	rm -rf dist $(VENV)
