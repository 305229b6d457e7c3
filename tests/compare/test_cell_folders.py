"""What a cell is known by: what differs from the defaults, so new options make no new cells."""

from decur.compare.plan import plan_cells
from decur.compare.settings import CompareSettings, MethodSettings, TaskSettings


def cells(run, method="DeCUR", changes=None, pretrained=None, **pretrain):
    settings = CompareSettings(
        methods={method: MethodSettings(changes or {})},
        tasks={"cover": TaskSettings({"target": "cover"})},
        run=str(run),
        backbones=["resnet18"],
        data={"class_path": "decur.data.SyntheticScenes", "init_args": {"samples": 8, "size": 32}},
        pretrain={"base": "demo", **pretrain},
        seeds=[0],
        pretrained=pretrained and str(pretrained),
    )
    return plan_cells(settings)


def folders(tmp_path, **pretrain):
    return [cell.folder.name for cell in cells(tmp_path / "run", **pretrain)]


def test_an_option_at_its_default_is_no_other_cell(tmp_path):
    plain = folders(tmp_path)
    assert folders(tmp_path, **{"encoder.attention": None, "loader.max_bad": 0.01}) == plain
    assert folders(tmp_path, **{"encoder.attention": "rda"})[0] != plain[0]
    assert folders(tmp_path, **{"projector.width": 64})[0] != plain[0]


def test_comparisons_with_one_folder_of_pretraining_share_what_is_the_same(tmp_path):
    def two(run, method, changes=None):
        return cells(tmp_path / run, method, changes, pretrained=tmp_path / "pretrained")

    trained, served = two("one", "DeCUR")
    assert trained.folder.parent == tmp_path / "pretrained"
    assert served.folder.parent == tmp_path / "one" / "transfer"
    trained.folder.mkdir(parents=True)  # as it is once it has begun
    again, elsewhere = two("two", "DeCUR, 87.5 %")  # what it is called is not what it is
    assert again.folder == trained.folder
    assert elsewhere.needs == (trained.folder,) and elsewhere.folder.parent.parent.name == "two"
    assert two("two", "DeCUR", {"projector.width": 64})[0].folder != trained.folder
