//! libvirt's daemon, run for one test alone.
//!
//! It runs as another user where the test is root's, since root's own daemon has one place for all.

use std::env;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Far more than it takes.
const LIMIT: Duration = Duration::from_secs(300);
/// Nobody.
const USER: u32 = 65534;

/// Daemons with directories of their own. Dropped, they and their machines are no more.
pub(crate) struct Libvirt {
    directory: TempDir,
    daemons: Vec<Child>,
}

impl Libvirt {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// With programs that are put into the first directory of PATH. The daemon may look for one early, and keep to what it found.
    pub(crate) fn start_with(put_programs: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for below in ["run", "config/libvirt", "cache", "data", "bin", "lab"] {
            fs::create_dir_all(directory.path().join(below)).unwrap();
        }
        // No AppArmor, which is the system's.
        fs::write(
            directory.path().join("config/libvirt/qemu.conf"),
            "security_driver = \"none\"\n",
        )
        .unwrap();
        let mut libvirt = Self {
            directory,
            daemons: Vec::new(),
        };
        put_programs(&libvirt.bin());
        libvirt.give();
        for (daemon, socket) in [("virtlogd", "virtlogd-sock"), ("libvirtd", "libvirt-sock")] {
            let socket = libvirt.directory.path().join("run/libvirt").join(socket);
            let log = libvirt.directory.path().join(daemon);
            let mut command = libvirt.command(&format!("/usr/sbin/{daemon}"));
            command.stderr(fs::File::create(&log).unwrap());
            let mut child = command.spawn().expect(daemon);
            eventually(daemon, || {
                let ended = child.try_wait().unwrap();
                assert!(
                    ended.is_none(),
                    "{ended:?}: {}",
                    fs::read_to_string(&log).unwrap()
                );
                socket.exists()
            });
            libvirt.daemons.push(child);
        }
        libvirt
    }

    /// The first directory of PATH.
    pub(crate) fn bin(&self) -> PathBuf {
        self.directory.path().join("bin")
    }

    /// Where images are.
    pub(crate) fn lab(&self) -> PathBuf {
        self.directory.path().join("lab")
    }

    /// All files become those of the user.
    pub(crate) fn give(&self) {
        if rustix::process::geteuid().is_root() {
            let mut paths = vec![self.directory.path().to_owned()];
            while let Some(path) = paths.pop() {
                chown(&path, Some(USER), Some(USER)).unwrap();
                if path.is_dir() {
                    paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                }
            }
        }
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            let user = USER.to_string();
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups", program]);
            command
        } else {
            Command::new(program)
        };
        let at = |below: &str| self.directory.path().join(below);
        let mut programs = self.bin().into_os_string();
        programs.push(":");
        programs.push(env::var_os("PATH").unwrap());
        command
            .current_dir(self.lab())
            .env("PATH", programs)
            .env("HOME", self.directory.path())
            .env("XDG_RUNTIME_DIR", at("run"))
            .env("XDG_CONFIG_HOME", at("config"))
            .env("XDG_CACHE_HOME", at("cache"))
            .env("XDG_DATA_HOME", at("data"))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn try_virsh(&self, line: &str) -> Output {
        let mut command = self.command("virsh");
        command
            .args(["-q", "-c", "qemu:///session"])
            .args(line.split(' '));
        command.output().expect("scripts/setup.sh test installs it")
    }

    pub(crate) fn virsh(&self, line: &str) -> String {
        let output = self.try_virsh(line);
        assert!(output.status.success(), "virsh {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        let running = self.try_virsh("list --name").stdout;
        for machine in String::from_utf8_lossy(&running).split_whitespace() {
            let _ = self.try_virsh(&format!("destroy {machine}"));
        }
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "{what} does not come");
        thread::sleep(Duration::from_millis(50));
    }
}
