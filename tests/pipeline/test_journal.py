import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raysearch.artifacts import resolve_run
from raysearch.errors import StorageError
from raysearch.pipeline.journal import save_journal
from raysearch.search import STUDY_NAME
from tests.support.old_run_task import RUN


def test_the_journal_of_a_saved_run(tmp_path):
    path = save_journal(resolve_run(RUN), tmp_path / "new" / "study.journal")
    study = optuna.load_study(study_name=STUDY_NAME, storage=JournalStorage(JournalFileBackend(str(path))))
    assert len(study.trials) == 20
    assert study.user_attrs["budgets"] == ["bops<=40%", "avg_bits<=4"]
    with pytest.raises(StorageError, match="the journal cannot be written"):
        save_journal(resolve_run(RUN), "/proc/none/study.journal")
