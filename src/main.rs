//! The binary: everything is in the library.

use rustix::process::{Resource, Rlimit, setrlimit};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Keys lie in memory: no core dumps. Where the limit cannot be set it is lower already.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).ok();
    ExitCode::from(blackstart::commands::main(std::env::args_os()))
}
