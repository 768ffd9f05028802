//! The key of a drill: it opens what is stored, and signs what was found.

use anyhow::Result;

use crate::error::{Failure, Kind, kind_of};
use crate::operations::{Open, evidence};
use crate::repository::keys::KeyFile;
use crate::repository::layout::SourceName;
use crate::repository::signed::SigningKey;
use crate::repository::snapshot::Snapshot;

/// Whether the key, which opens what is stored now, does not open a snapshot of other recipients. In one of its own epoch that is damage.
pub(super) fn is_another(open: &Open, snapshot: &Snapshot, error: &anyhow::Error) -> bool {
    kind_of(error) == Kind::WrongKey && snapshot.epoch != open.trust.epoch
}

/// That the key file can drill `sources`: it opens what is stored now, and signs reports that readers will count. A drill with another key
/// would find every backup bad.
pub fn signer<'a>(open: &Open, keys: &'a KeyFile, sources: &[SourceName]) -> Result<&'a SigningKey> {
    let signing = keys.signing.as_ref().ok_or_else(|| {
        let help =
            "Nothing was done. Give the whole key file that `init` wrote; `restore` needs the age identity only.";
        Failure::new(Kind::WrongKey, "the key file has no signing key, and a drill must sign its report", help)
    })?;
    open.trust.require_reader(&keys.identities)?;
    evidence::require_trusted(open, &signing.public(), sources, open.now())?;
    Ok(signing)
}
