//! `verify`: is the repository whole?

use anyhow::Result;

use super::open::recovery_key;
use super::output::{Ending, Exit, Shell, count, size};
use crate::cli::Verify;
use crate::operations::verify;

pub fn run(shell: &Shell, args: &Verify) -> Result<Ending> {
    let reader = shell.reader(&args.place)?;
    let read_data = match args.read_data {
        true => Some(recovery_key(reader.config.as_ref(), args.identity.as_deref())?.identities),
        false => None,
    };
    let options = verify::Options { hashes: args.hashes, read_data };
    let report = verify::verify(&reader.open, args.source.as_ref(), &options)?;
    let mut sound = true;
    for source in &report.sources {
        let verdict = if source.faults.is_empty() { "whole" } else { "DAMAGED" };
        shell.say(format!(
            "{}: {verdict}: {}, {}, {} read",
            source.source,
            count(source.snapshots, "snapshot"),
            count(source.objects, "object"),
            size(source.bytes_read)
        ));
        for fault in &source.faults {
            sound = false;
            shell.warn(format!(
                "{}: {}: {}; hurts snapshots {:?}",
                source.source, fault.object, fault.what, fault.hurts
            ));
        }
    }
    Ending::new(if sound { Exit::Done } else { Exit::CheckFailed }, report)
}
