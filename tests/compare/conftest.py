"""The comparisons that ship, each planned once for all tests."""

import contextlib
import io
import re
from functools import cache

import pytest

from decur.cli import main
from decur.compare.plan import plan_cells
from decur.recipes import recipes


@pytest.fixture(scope="session")
def planned(tmp_path_factory):
    """Plan a comparison that ships: what its dry run prints, and its cells."""

    @cache
    def plan(name):
        roots = [f"--{key}=X" for key in re.findall(r"--([a-z.]*data\.root)", recipes()[name])]
        run, found = tmp_path_factory.mktemp("planned") / "run", []
        folders = (f"--run={run}", f"--pretrained={run / 'pretrain'}")
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(io.StringIO()) as out,
        ):
            patch.setattr(
                "decur.compare.run.plan_cells",
                lambda given: found.extend(plan_cells(given)) or found,
            )
            main(["compare", f"--config={name}", *folders, "--dry_run=true", *roots])
        assert not run.exists()
        return out.getvalue(), tuple(found)

    return plan
