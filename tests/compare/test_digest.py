"""What a cell is known by: what differs from the defaults, so new options make no new cells."""

from decur.compare.plan import MethodPlan, Plan, TaskPlan


def folders(tmp_path, **pretrain):
    data = {"class_path": "decur.data.SyntheticScenes", "init_args": {"samples": 8, "size": 32}}
    plan = Plan(
        *(tmp_path / "run", {"DeCUR": MethodPlan()}, {"cover": TaskPlan({"target": "cover"})}),
        *({"resnet18": {"encoder.name": "resnet18"}}, data, {"base": "demo", **pretrain}, {}),
        *([], [1.0], [0]),
    )
    return [cell.folder.name for cell in plan.cells()]


def test_an_option_at_its_default_is_no_other_cell(tmp_path):
    plain = folders(tmp_path)
    assert folders(tmp_path, **{"encoder.attention": None, "loader.max_bad": 0.01}) == plain
    assert folders(tmp_path, **{"encoder.attention": "rda"})[0] != plain[0]
    assert folders(tmp_path, **{"projector.width": 64})[0] != plain[0]


def test_comparisons_with_one_folder_of_pretraining_share_what_is_the_same(tmp_path):
    def cells(run: str, method: str, **pretrain):
        data = {"class_path": "decur.data.SyntheticScenes", "init_args": {"samples": 8, "size": 32}}
        return Plan(
            *(tmp_path / run, {method: MethodPlan(pretrain)}, {"cover": TaskPlan({})}),
            *({"resnet18": {}}, data, {"base": "demo"}, {"target": "cover"}, [], [1.0], [0]),
            pretrained=tmp_path / "pretrained",
        ).cells()

    trained, served = cells("one", "DeCUR")
    assert trained.folder.parent == tmp_path / "pretrained"
    assert served.folder.parent == tmp_path / "one" / "transfer"
    trained.folder.mkdir(parents=True)  # as it is once it has begun
    again, elsewhere = cells("two", "DeCUR, 87.5 %")  # what it is called is not what it is
    assert again.folder == trained.folder
    assert elsewhere.needs == (trained.folder,) and elsewhere.folder.parent.parent.name == "two"
    assert cells("two", "DeCUR", **{"projector.width": 64})[0].folder != trained.folder
