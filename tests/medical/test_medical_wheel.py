"""The wheel of cl-medical with that of its core, in a fresh environment: from sample data to a segmentation."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_installed_wheel_goes_from_sample_data_to_a_segmentation(build_wheel, install, tmp_path):
    members = (ROOT / "shared" / "contrastive-core", ROOT / "packages" / "cl-medical")
    fresh = install([build_wheel(member) for member in members])

    def run(*words):
        done = fresh.run("from cl_medical.cli import main; main()", "mpcl", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    where = "import cl_medical, contrastive_core as c; print(cl_medical.__file__, c.__file__)"
    found = fresh.run(where, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert str(ROOT) not in found.stdout
    run("sample-data", "scans", "--cases", "4", "--unlabelled", "1")
    small = ["--network.width", "4", "--network.downsamplings", "2", "--patch", "16", "16", "16", "--steps", "3"]
    run("train", "scans", "run", "--labelled", "1", "--test", "1", *small, "--stride", "16", "16", "16")
    assert "1 of 1" in run("predict", "run", "scans/images/simulated_003.nii.gz", "out")
    assert (tmp_path / "out" / "simulated_003.nii.gz").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
