//! The binary: everything is in the library.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Keys lie in memory: no core dumps, neither of us (a limit does not keep the kernel from handing one to a program, see core(5)) nor of what we
    // start; and no other process of the same user looks into us. Where the limit cannot be set it is lower already.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).ok();
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).ok();
    ExitCode::from(blackstart::commands::main(std::env::args_os()))
}
