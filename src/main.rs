//! The binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(blackstart::commands::main(std::env::args_os()))
}
