//! What blackstart does: one public function each, each returns a report.

pub mod retention;
