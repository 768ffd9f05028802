//! Figures of a run without an agent: what the repository shows of the sources, for node_exporter's file.

use std::collections::BTreeMap;

use super::observe::Seen;
use super::show::of_drill;
use crate::config::Config;
use crate::metrics::{Figures, SourceFigures};
use crate::operations::evidence::Level;
use crate::repository::layout::SourceName;

/// Of the sources of `config`, as far as they could be read.
pub fn figures(config: &Config, seen: &BTreeMap<SourceName, Seen>) -> Figures {
    let none = Seen::default();
    let of = |source: &crate::config::SourceConfig| {
        let seen = seen.get(&source.name).unwrap_or(&none);
        let drill = seen.drills.get(&Level::Engine);
        let ended = [("full", seen.full), ("incremental", seen.incremental), ("drill", drill.map(|d| d.span))];
        let figures = SourceFigures {
            newest: seen.newest.as_ref().map(|newest| newest.data_time),
            reaches: seen.reaches(),
            looked: seen.looked,
            verified: seen.verified.newest,
            head: seen.head.as_ref().map(|(seq, _)| *seq),
            rpo_seconds: source.rpo.map(|d| d.as_secs_f64()),
            rto_seconds: source.rto.map(|d| d.as_secs_f64()),
            drill: drill.map(of_drill),
            last_success: ended.into_iter().filter_map(|(task, span)| Some((task, span?.finished))).collect(),
            ..SourceFigures::default()
        };
        (source.name.to_string(), figures)
    };
    Figures {
        sources: config.source.iter().map(of).collect(),
        repository_up: Some(true),
        configuration_ok: true,
        ..Figures::default()
    }
}
