//! A network namespace with nothing in it, for programs that have no business on a network (unshare(1) of util-linux). Where the machine does not
//! allow one, a program runs without.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// How a program is cut off from the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CutOff {
    /// As root that stays root.
    Root,
    /// Within a namespace in which the user is itself and nobody else is anybody.
    User,
}

impl CutOff {
    /// The command that becomes `program`: it keeps the process's number.
    pub fn before(self, program: &OsStr) -> Command {
        let mut command = Command::new("unshare");
        match self {
            CutOff::Root => command.arg("--net"),
            CutOff::User => command.args(["--user", "--map-current-user", "--net"]),
        };
        command.arg("--").arg(program);
        command
    }

    fn works(self, user: Option<(u32, u32)>) -> bool {
        let mut command = self.before("true".as_ref());
        if let Some((user, group)) = user {
            command.uid(user).gid(group);
        }
        // What is asked of the machine needs nothing of our environment, which may hold secrets.
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    }
}

/// How a program of `user`, or of ours, can be cut off; `None`: not here. Tried once.
pub(super) fn cut_off(user: Option<(u32, u32)>) -> Option<CutOff> {
    static WORKS: [OnceLock<bool>; 2] = [const { OnceLock::new() }; 2];
    let how = if user.is_none() && rustix::process::geteuid().is_root() { CutOff::Root } else { CutOff::User };
    let works = &WORKS[usize::from(how == CutOff::User)];
    works.get_or_init(|| how.works(user)).then_some(how)
}

/// Whether programs can be that run as `user`, and those that run as we do.
pub fn can_be_cut_off(user: Option<(u32, u32)>) -> bool {
    cut_off(None).is_some() && cut_off(user).is_some()
}
