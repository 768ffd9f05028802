//! `drill` in a job file: one rhythm, or several, each for a level of its own.

use serde::de::{self, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

use super::Task;
use super::rhythm::{Interval, Rhythm};
use crate::operations::evidence::Level;
use crate::time::Zone;

/// `drill = { every = "7d" }`, or `[[drill]]` with a `level` each. No level comes twice.
#[derive(Debug)]
pub struct Drills(Vec<Drill>);

#[derive(Debug)]
struct Drill {
    /// As it is written.
    level: Option<Level>,
    rhythm: Rhythm,
}

impl Drills {
    pub fn tasks(self) -> impl Iterator<Item = (Task, Rhythm)> {
        self.0.into_iter().map(|drill| (drill.level.map_or(Task::DRILL, Task::Drill), drill.rhythm))
    }

    /// The rhythm of a plan, whose stages say how deep it goes.
    pub fn of_plan(self) -> Result<Rhythm, String> {
        let mut all = self.0.into_iter();
        match (all.next(), all.next()) {
            (Some(Drill { level: None, rhythm }), None) => Ok(rhythm),
            _ => Err("a plan is drilled as it is written: it has one `drill` without a `level`".into()),
        }
    }
}

impl<'de> Deserialize<'de> for Drill {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Drill, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, expecting = "a rhythm such as { every = \"7d\" }")]
        struct Written {
            every: Option<Interval>,
            cron: Option<String>,
            timezone: Option<Zone>,
            level: Option<Level>,
        }
        let Written { every, cron, timezone, level } = Written::deserialize(d)?;
        Ok(Drill { level, rhythm: Rhythm::written(every, cron, timezone).map_err(D::Error::custom)? })
    }
}

/// By hand, because an untagged enum would lose the line of an error.
impl<'de> Deserialize<'de> for Drills {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Drills, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Drills;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rhythm such as { every = \"7d\" }, or several as [[drill]], each with a level")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Drills, A::Error> {
                Ok(Drills(vec![Drill::deserialize(de::value::MapAccessDeserializer::new(map))?]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Drills, A::Error> {
                let mut drills: Vec<Drill> = Vec::new();
                while let Some(drill) = all.next_element::<Drill>()? {
                    let level = |drill: &Drill| drill.level.unwrap_or(Level::Engine);
                    if drills.iter().any(|other| level(other) == level(&drill)) {
                        return Err(A::Error::custom(format!("two drills are of level {}", level(&drill))));
                    }
                    drills.push(drill);
                }
                Ok(Drills(drills))
            }
        }
        d.deserialize_any(OneOrMore)
    }
}
