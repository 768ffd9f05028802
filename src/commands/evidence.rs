//! What the verbs put on record of drills and restores.

use super::output::Shell;
use crate::audit::Who;
use crate::operations::Open;
use crate::operations::evidence::restored::{self, Circumstances};
use crate::operations::restore::RestoreReport;
use crate::repository::signed::SigningKey;
use crate::repository::snapshot::{Commit, Snapshot};

/// What started it: the verb, and who ran that.
pub fn by_hand(verb: &str) -> String {
    format!("by hand: {} ran `{verb}`", Who::here().user)
}

/// A restore that is done is recorded where that is possible. At 3 a.m. nothing of this may stand in the way.
pub fn record(
    shell: &Shell,
    open: &Open,
    signer: Option<&SigningKey>,
    point: (&Commit, &Snapshot),
    report: &RestoreReport,
    how: &Circumstances,
) {
    let Some(signer) = signer else {
        shell.say("Not recorded in the repository: the key file has no signing key.");
        return;
    };
    if let Err(e) = restored::record(open, signer, point, report, how) {
        shell.warn(format!("the restore is done; its record could not be stored in the repository: {e:#}"));
    }
}
