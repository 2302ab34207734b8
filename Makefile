# make demo, make test: on a fresh Debian-like machine with Python 3.11 these install what they need first.
# PYTHON=/path/to/python3 chooses the Python.  PYTEST_ARGS="-k move" goes to pytest.

VENV := .venv
BIN := $(VENV)/bin
PREFIX := /opt/redirectctl
LINKS := /usr/local/bin
UNITS := /etc/systemd/system
SHARE := /usr/local/share
ZSH := $(SHARE)/zsh/site-functions
CONFIG := /etc/redirectctl
START := yes
PYTEST_ARGS :=
# Tests on the real kernel mostly wait: more at a time than there are processors.
JOBS := 4
# Of mutants: how many, and which.  MUTANTS="--only 3,17" are more arguments of tests/mutants.py.
SAMPLE := 300
SEED := 1
MUTANTS :=
# Network namespaces need root.
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help demo test test-pythons test-debian13 mutants lint setup packages install uninstall wheel deb pictures recording clean

help:
	@echo 'make demo       watch an ssh session live through address changes, in network namespaces of this machine'
	@echo 'make test       all tests: unit, simulated, and on the real kernel in network namespaces'
	@echo 'make test-pythons   unit and simulated tests with Python 3.11, 3.12 and 3.13, as far as they are here'
	@echo 'make test-debian13  demo and all tests in a root of Debian 13 (debootstrap; as root)'
	@echo 'make mutants    do the tests notice a wrong line of the core? $$(SAMPLE) changes, chosen by $$(SEED) (an hour)'
	@echo 'make lint       ruff, mypy --strict, import-linter'
	@echo 'make install    into $(PREFIX), commands into $(LINKS), man pages and completion below $(SHARE),'
	@echo '                systemd unit into $(UNITS), configuration into $(CONFIG) (as root)'
	@echo 'make uninstall  stops the daemon, cleans the kernel, removes all that, and says what stays'
	@echo 'make wheel      dist/redirectctl-*.whl'
	@echo 'make deb        dist/redirectctl_*.deb, for the Debian that this is'
	@echo 'make pictures   the pictures of the terminal UI in docs/'
	@echo 'make recording  the recording of the demo in docs/ (as root)'
	@echo 'make clean      removes what the others made in this folder'

demo: setup
	$(SUDO) $(BIN)/redirectctl demo

test: setup
	$(SUDO) env $(if $(REDIRECTCTL_VECTORS),REDIRECTCTL_VECTORS='$(REDIRECTCTL_VECTORS)') \
	    $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

test-pythons: packages
	scripts/pythons -n $(JOBS) $(PYTEST_ARGS)

test-debian13: packages
	$(SUDO) env JOBS=$(JOBS) PYTEST_ARGS='$(PYTEST_ARGS)' scripts/debian13

mutants: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'mutmut>=3.8,<4'
	nice $(BIN)/python tests/mutants.py --sample $(SAMPLE) --seed $(SEED) $(MUTANTS)

lint: setup
	mkdir -p build/names
	ln -sfn ../../tui build/names/redirectctl_tui
	ln -sfn ../../wrappers build/names/redirectctl_wrappers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: packages $(VENV)/.complete

packages:
	@scripts/setup packages

$(VENV)/.complete: pyproject.toml scripts/setup wrappers/launcher.py | packages
	@scripts/setup venv $(VENV)
	@touch $@

install:
	@scripts/setup packages run
	@[ ! -e $(PREFIX) ] || [ -e $(PREFIX)/pyvenv.cfg ] || { echo '$(PREFIX) holds something else'; exit 1; }
	rm -rf build/lib
	"$$(scripts/setup python public)" -m venv --clear $(PREFIX)
	$(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check '.[desktop]'
	$(PREFIX)/bin/python -m redirectctl_wrappers.launcher $(PREFIX)/bin/redirect-run
	install -d $(LINKS)
	ln -sfn $(PREFIX)/bin/redirectd $(PREFIX)/bin/redirectctl $(PREFIX)/bin/redirect-run $(LINKS)/
	scripts/share install $(SHARE) $(ZSH) $(PREFIX)/bin/redirectctl
	[ -e $(CONFIG)/redirectd.toml ] || install -D -m 644 etc/redirectd.toml $(CONFIG)/redirectd.toml
	getent group redirectctl >/dev/null || groupadd --system redirectctl
	if [ -d $(dir $(UNITS)) ]; then \
	    install -d $(UNITS) && \
	    sed 's|/usr/local/bin|$(LINKS)|' systemd/redirectd.service >$(UNITS)/redirectd.service; fi
	@if [ -n "$$SUDO_USER" ] && [ "$$SUDO_USER" != root ]; then \
	    usermod -aG redirectctl "$$SUDO_USER"; \
	    echo "$$SUDO_USER may control redirectd from now on: a member of the group redirectctl"; fi
	@if [ -d /run/systemd/system ]; then \
	    systemctl daemon-reload; \
	    if [ $(START) = yes ]; then \
	        systemctl enable redirectd; systemctl restart redirectd; echo 'redirectd runs, also after the next boot'; \
	    else echo 'start it with: systemctl enable --now redirectd'; fi; \
	else echo 'start it with: redirectd &'; fi

uninstall:
	if [ -d /run/systemd/system ]; then systemctl disable --now redirectd || true; fi
	if [ -x $(PREFIX)/bin/redirectctl ]; then $(PREFIX)/bin/redirectctl doctor --clean || true; fi
	rm -f $(LINKS)/redirectd $(LINKS)/redirectctl $(LINKS)/redirect-run $(UNITS)/redirectd.service
	scripts/share remove $(SHARE) $(ZSH)
	if cmp -s etc/redirectd.toml $(CONFIG)/redirectd.toml; then \
	    rm $(CONFIG)/redirectd.toml; rmdir --ignore-fail-on-non-empty $(CONFIG); fi
	if [ -e $(PREFIX)/pyvenv.cfg ]; then rm -rf $(PREFIX); fi
	@scripts/stays $(CONFIG)

wheel: setup
	rm -rf build/lib
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

deb:
	scripts/deb

pictures: setup
	$(BIN)/python -m tests.tui.picture moved 120x33 docs/ui-connections.svg
	$(BIN)/python -m tests.tui.picture resumed 120x33 docs/ui-moves.svg 3

recording: setup
	$(SUDO) $(BIN)/python -m tests.tui.recording record tests/tui/scenes/demo.cast
	$(BIN)/python -m tests.tui.recording draw tests/tui/scenes/demo.cast docs/demo.svg

clean:
	$(SUDO) rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	$(SUDO) find . -name __pycache__ -prune -exec rm -rf {} +
