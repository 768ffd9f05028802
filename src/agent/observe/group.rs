//! What a group shows: its newest common point, what is wrong with its points, and the runs that they tell of.

use anyhow::Result;
use std::time::Duration;

use super::{Newest, Seen, Span, USUAL_OF, given};
use crate::operations::Open;
use crate::operations::group::{Standing, look_at};
use crate::repository::group::{Point, Points};
use crate::repository::layout::{GroupName, SourceName};
use crate::repository::series::Series;

/// Points that are read at most to find the newest run of each sort.
const POINTS_READ_MAX: usize = 200;

/// What was listed of a group and its members: while it is the same, nothing came and nothing went.
pub type Listed = Vec<(SourceName, u64, usize)>;

pub fn look(open: &Open, name: &GroupName, seen: &mut Seen) -> Result<()> {
    let points = Points::list(&open.store, &open.trust, name)?;
    let listed = listed(open, &points, seen)?;
    if seen.listed.as_ref() == Some(&listed) {
        return Ok(());
    }
    let mut standing = Standing::new(open);
    let sight = look_at(open, &mut standing, &points)?;
    runs(&points, &mut standing, seen)?;
    let newest = sight.n.zip(sight.hash).zip(sight.data_time);
    seen.newest = newest.map(|((n, hash), data_time)| Newest {
        seq: n,
        commit: hash.to_string(),
        data_time,
        // No later than that: what a run before it left open, it answers.
        begun: data_time,
        suspect: false,
        log: None,
    });
    (seen.faults, seen.listed) = (sight.faults, Some(listed));
    Ok(())
}

/// The points, and the series of the members of the newest one.
fn listed(open: &Open, points: &Points, seen: &mut Seen) -> Result<Listed> {
    let of_points = (SourceName::of_group(points.name()), points.last(), points.count());
    let known = seen.listed.iter().flatten();
    let before: Vec<SourceName> = known.map(|(name, ..)| name.clone()).filter(SourceName::is_source).collect();
    let members = match seen.listed.as_ref().and_then(|all| all.first()) {
        Some(same) if *same == of_points => before,
        _ => match given(points.read(points.last()))? {
            Some(newest) => newest.group.members.into_iter().map(|member| member.source).collect(),
            None => before,
        },
    };
    let mut listed = vec![of_points];
    for member in members {
        let series = Series::list(&open.store, &open.trust, &member)?;
        listed.push((member, series.head(), series.written().count()));
    }
    Ok(listed)
}

/// What the newest points say of the runs that made them.
fn runs(points: &Points, standing: &mut Standing, seen: &mut Seen) -> Result<()> {
    let known = seen.head.as_ref().map_or(0, |(n, _)| *n);
    let (mut head, mut full, mut incremental, mut durations) = (None, None, None, Vec::new());
    for n in (1..=points.last()).rev().take(POINTS_READ_MAX) {
        let found = full.is_some() && incremental.is_some();
        if durations.len() >= USUAL_OF && (found || n <= known) {
            break;
        }
        let Some(Point { hash, group, .. }) = given(points.read(n))? else { continue };
        head.get_or_insert((n, hash.to_string()));
        let span = Span { started: group.started, finished: group.finished };
        let kind = if standing.all_full(&group)? { &mut full } else { &mut incremental };
        kind.get_or_insert(span);
        durations.push(Duration::try_from(span.finished.duration_since(span.started)).unwrap_or_default());
    }
    seen.head = head;
    // What was found further back than one looks now was found before.
    (seen.full, seen.incremental) = (full.or(seen.full), incremental.or(seen.incremental));
    // The first, a full, is not what runs usually take.
    durations.truncate(USUAL_OF);
    seen.usual = durations.into_iter().max().unwrap_or_default();
    Ok(())
}
