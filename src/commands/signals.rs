//! SIGINT and SIGTERM. The first asks what is under way to stop, and leaves it some time to; the second, or the end of that time, ends the
//! process at once. Either is safe at any moment, as `kill -9` is: nothing counts before its last write.

use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::output;
use crate::error::Kind;
use crate::{bridge, child, interrupt};

/// How long an operation may take to stop by itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Listens from now on. Where that cannot be had, signals do what they always did: they end the process.
pub fn listen(verb: &'static str, json: bool) {
    static ASKED: AtomicBool = AtomicBool::new(false);
    let on_signal = move || {
        interrupt::wish();
        if ASKED.swap(true, Ordering::SeqCst) {
            end(verb, json);
        }
        if !json {
            output::print_raw("stopping; once more to stop at once", true);
        }
        let wait = move || {
            std::thread::sleep(PATIENCE);
            end(verb, json);
        };
        // Without the thread there is no end to the patience, and the second signal still works.
        drop(std::thread::Builder::new().name("patience".into()).spawn(wait));
    };
    drop(bridge::on_signals(on_signal));
}

#[expect(clippy::exit, reason = "whatever is still under way has had its time")]
fn end(verb: &str, json: bool) -> ! {
    child::kill_all();
    let message = "interrupted by a signal";
    let help = "What was stored counts, and what was not finished counts for nothing. The same command again goes on.";
    if json {
        let error = json!({"kind": output::kind_name(Kind::Interrupted), "message": message, "help": help});
        output::print_json(&json!({"version": 1, "verb": verb, "error": error}));
    } else {
        output::print_raw(&format!("error: {message}\nhelp: {help}"), true);
    }
    std::process::exit(i32::from(Kind::Interrupted.exit_code()));
}
