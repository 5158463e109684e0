//! The recipes of whole distributions, built from their archives and booted without any acceleration: to a login, to a shell by
//! ssh, and to their end by the power button. That takes minutes and a network: it runs with `make test-slow` only.

mod common;

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use block::BlockDevice;
use common::run as run_line;
use machines::personalise::{AuthorizedKeys, Identity, personalise};
use machines::recipe::{BuildOptions, Recipe};
use machines::run::{RunOptions, WaitFor, run};
use machines::store::{Instance, NewInstances, Store, Template};
use machines::{Accel, Forward, Machine, NetworkKind, Seed, Settings};
use ops::{Cancel, Control};

/// Far more than anything takes.
const LIMIT: Duration = Duration::from_secs(1200);

/// What a guest is told, and tells again.
const CREDENTIAL: (&str, &str) = ("imgtool.test", "told by SMBIOS");

/// What is written to the console when all has been looked at.
const SEEN: &str = "imgtool: all is seen";

struct Lab {
    directory: tempfile::TempDir,
    store: Store,
    control: Control<'static>,
}

impl Lab {
    /// A store, and a key to log in with.
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        run_line(directory.path(), "ssh-keygen -q -t ed25519 -N  -f key");
        Self {
            store: Store::at(directory.path().join("store")),
            directory,
            control: Control::unwatched(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn build(&self, recipe: &str, options: &BuildOptions) -> Template {
        let start = Instant::now();
        let recipe = Recipe::load(Path::new(recipe)).unwrap();
        let template = self.store.build(&recipe, options, &self.control);
        let template = template.unwrap_or_else(|error| panic!("{error}: {:?}", error.hint()));
        println!("built in {:?}", start.elapsed());
        let image = template.image();
        run_line(
            self.directory.path(),
            &format!("qemu-img check -q {}", image.display()),
        );
        template
    }

    fn keys(&self) -> AuthorizedKeys {
        AuthorizedKeys::parse(&fs::read_to_string(self.path("key.pub")).unwrap()).unwrap()
    }

    /// A machine that anybody with the key can log in to: made so by us, or by cloud-init.
    fn clone(&self, template: &Template, name: &str, seed: Option<Seed>) -> (Instance, Machine, u16) {
        let with_us = seed.is_none();
        let new = NewInstances {
            names: vec![name.parse().unwrap()],
            seed,
            ..NewInstances::default()
        };
        let own = |instance: &Instance, disk: &Arc<dyn BlockDevice>| {
            let mut identity = Identity::new(instance.name.as_str())?;
            identity.login = Some(("root".to_owned(), self.keys()));
            if with_us {
                personalise(disk, &identity, true)?;
            }
            Ok(())
        };
        let mut made = self
            .store
            .clone_template(template, &new, &own, &self.control)
            .unwrap();
        let instance = made.remove(0);
        let port = free_port();
        let mut settings = Settings::default();
        settings.network.kind = Some(NetworkKind::User);
        settings.network.forward = Some(vec![Forward {
            address: Ipv4Addr::LOCALHOST,
            host: port,
            guest: 22,
        }]);
        let (name, value) = CREDENTIAL;
        settings
            .credentials
            .insert(name.parse().unwrap(), value.to_owned());
        let machine = self.store.machine(&instance, settings, &self.control).unwrap();
        (instance, machine, port)
    }

    /// Has sshd be known by the key that the machine's disk has, as another implementation reads it.
    fn know(&self, instance: &Instance, port: u16) {
        let image = instance.image();
        run_line(
            self.directory.path(),
            &format!("qemu-img convert -O raw {} raw", image.display()),
        );
        let mut debugfs = Command::new("debugfs");
        debugfs.args(["-R", "cat /etc/ssh/ssh_host_ed25519_key.pub"]);
        let key = debugfs.arg(self.path("raw")).output().unwrap().stdout;
        let key = String::from_utf8(key).unwrap();
        assert!(key.starts_with("ssh-ed25519 "), "{key}");
        fs::write(self.path("known"), format!("[127.0.0.1]:{port} {key}")).unwrap();
    }

    /// Runs a script on a machine, as soon as its sshd answers, and gives what that writes.
    fn ssh(&self, user: &str, port: u16, ask: &str, script: &str) -> String {
        let start = Instant::now();
        let mut last = None;
        while start.elapsed() < LIMIT {
            let output = self.ssh_once(user, port, ask, script);
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap();
            }
            // 255 is ssh's own, as long as nobody answers.
            assert_eq!(output.status.code(), Some(255), "{output:?}");
            last = Some(output);
            thread::sleep(Duration::from_secs(1));
        }
        panic!("nobody answers: {last:?}");
    }

    fn ssh_once(&self, user: &str, port: u16, ask: &str, script: &str) -> Output {
        let known = self.path("known");
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=60"])
            .args([
                "-o",
                "PreferredAuthentications=publickey",
                "-o",
                "IdentitiesOnly=yes",
            ])
            .args(["-o", &format!("StrictHostKeyChecking={ask}")])
            .args(["-o", &format!("UserKnownHostsFile={}", known.display())])
            .arg("-i")
            .arg(self.path("key"))
            .args(["-p", &port.to_string(), "-l", user, "127.0.0.1", script])
            .output()
            .expect("scripts/setup.sh test-slow installs ssh")
    }

    /// Starts the machine, and has `look` look at it when it asks for a login. Then its power button is pressed, by which it has to
    /// turn itself off.
    fn boot(&self, machine: &Machine, look: impl FnOnce(&Self)) {
        let options = RunOptions {
            accel: Accel::Tcg,
            ephemeral: None,
            wait_for: Some(WaitFor::new(SEEN, LIMIT, LIMIT).unwrap()),
        };
        let login = format!("{} login:", machine.name);
        let cancel = Cancel::new();
        let start = Instant::now();
        let looked = thread::scope(|scope| {
            let (send, said) = channel();
            let running = scope.spawn(|| run(machine, &options, &mut Console(send), &cancel));
            let console = until(&said, &login);
            assert!(console.contains(&login), "{:?}: {console}", running.join());
            println!("login after {:?}", start.elapsed());
            let looked = Instant::now();
            // Nothing that fails is to leave it running.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(self)));
            if let Err(panic) = result {
                cancel.cancel();
                std::panic::resume_unwind(panic);
            }
            println!("looked at for {:?}", looked.elapsed());
            let looked = Instant::now();
            running.join().unwrap().unwrap();
            looked
        });
        // It is turned off only when the limit is over.
        assert!(looked.elapsed() < LIMIT, "the guest did not turn itself off");
        println!("off after {:?}", looked.elapsed());
        // And has unmounted its root.
        let image = &machine.disks[0].chain[0].path;
        let directory = self.directory.path();
        run_line(
            directory,
            &format!("qemu-img convert -O raw {} raw", image.display()),
        );
        let header = run_line(directory, "dumpe2fs -h raw");
        assert!(
            header.contains("Filesystem state:         clean") && !header.contains("needs_recovery"),
            "{header}"
        );
        run_line(directory, "e2fsck -fn raw");
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// What a guest writes goes through a channel, which ends with it.
struct Console(Sender<Vec<u8>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nobody may be reading it any more.
        let _ = self.0.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is said until a text is, or the end.
fn until(said: &Receiver<Vec<u8>>, text: &str) -> String {
    let mut all = Vec::new();
    while let Ok(bytes) = said.recv() {
        all.extend(bytes);
        if String::from_utf8_lossy(&all).contains(text) {
            break;
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// What every system says of itself.
fn script(sudo: &str) -> String {
    format!(
        "set -e; hostname; . /etc/os-release; echo $ID $VERSION_ID; {sudo} systemd-creds --system cat {}; echo; \
         grep -c . /etc/machine-id; systemctl is-active ssh; echo '{SEEN}' | {sudo} tee /dev/ttyS0 >/dev/null",
        CREDENTIAL.0
    )
}

#[test]
fn debian_12_is_built_boots_as_itself_answers_by_ssh_and_turns_off_by_its_button() {
    let lab = Lab::new();
    let template = lab.build("debian-12", &BuildOptions::default());
    let os = template.document.os.as_deref().unwrap();
    assert!(os.starts_with("Debian GNU/Linux 12"), "{os}");
    let (instance, machine, port) = lab.clone(&template, "web-1", None);
    lab.know(&instance, port);
    lab.boot(&machine, |lab| {
        let said = lab.ssh("root", port, "yes", &script(""));
        assert_eq!(said, format!("web-1\ndebian 12\n{}\n1\nactive\n", CREDENTIAL.1));
    });
}

#[test]
fn debian_12_with_cloud_init_makes_itself_what_its_seed_says() {
    let lab = Lab::new();
    let template = lab.build("debian-12-cloud", &BuildOptions::default());
    assert_eq!(template.document.user.as_deref(), Some("debian"));
    let seed = Seed {
        login: Some((None, lab.keys())),
        ..Seed::default()
    };
    let (_, machine, port) = lab.clone(&template, "cloud-1", Some(seed));
    lab.boot(&machine, |lab| {
        // Its host keys are made in the guest.
        let script = format!("sudo cloud-init status --wait; {}", script("sudo"));
        let said = lab.ssh("debian", port, "accept-new", &script);
        let said = said.trim_start_matches('.').trim_start();
        assert_eq!(
            said,
            format!("status: done\ncloud-1\ndebian 12\n{}\n1\nactive\n", CREDENTIAL.1)
        );
    });
}

/// The archive of Ubuntu that debootstrap knows for architectures of PCs.
fn ubuntu_mirror() -> String {
    let script = fs::read_to_string("/usr/share/debootstrap/scripts/gutsy").unwrap();
    let mirrors = script
        .lines()
        .filter_map(|line| line.trim().strip_prefix("default_mirror "));
    let mut current = mirrors.filter(|mirror| !mirror.contains("old-releases") && !mirror.contains("ports"));
    current.next().unwrap().to_owned()
}

#[test]
fn ubuntu_24_04_is_built_from_the_mirror_that_is_given_and_boots_too() {
    let lab = Lab::new();
    let options = BuildOptions {
        mirror: vec![ubuntu_mirror()],
        ..BuildOptions::default()
    };
    let template = lab.build("ubuntu-24.04", &options);
    let (instance, machine, port) = lab.clone(&template, "noble-1", None);
    lab.know(&instance, port);
    lab.boot(&machine, |lab| {
        let said = lab.ssh("root", port, "yes", &script(""));
        assert_eq!(
            said,
            format!("noble-1\nubuntu 24.04\n{}\n1\nactive\n", CREDENTIAL.1)
        );
    });
}

#[test]
fn debootstrap_makes_a_system_too_and_leaves_nothing_mounted() {
    let lab = Lab::new();
    let recipe = lab.path("small.toml");
    let text = "[source.debootstrap]\nsuite = \"bookworm\"\nvariant = \"minbase\"\npackages = [\"bzip2\"]\n";
    fs::write(&recipe, text).unwrap();
    let template = lab.build(recipe.to_str().unwrap(), &BuildOptions::default());
    let os = template.document.os.as_deref().unwrap();
    assert!(os.starts_with("Debian GNU/Linux 12"), "{os}");
    let directory = lab.directory.path();
    let image = template.image();
    run_line(
        directory,
        &format!("qemu-img convert -O raw {} raw", image.display()),
    );
    run_line(directory, "e2fsck -fn raw");
    let mut debugfs = Command::new("debugfs");
    debugfs
        .args(["-R", "cat /var/lib/dpkg/status"])
        .arg(lab.path("raw"));
    let status = String::from_utf8(debugfs.output().unwrap().stdout).unwrap();
    for package in ["apt", "bzip2"] {
        let line = format!("Package: {package}\nStatus: install ok installed\n");
        assert!(status.contains(&line), "{package}: {status}");
    }
    assert!(!status.contains("Package: systemd-sysv"), "{status}");

    // Stopped in the middle, where it has /proc mounted.
    let recipe = Recipe::load(&recipe).unwrap();
    let cancel = Cancel::new();
    let control = Control::new(cancel.clone(), &|_| {});
    let work = lab.path("store/.work");
    let mounts = || fs::read_to_string("/proc/mounts").unwrap();
    let stopped = thread::scope(|scope| {
        let building = scope.spawn(|| lab.store.build(&recipe, &BuildOptions::default(), &control));
        let unpacked =
            |entry: io::Result<fs::DirEntry>| entry.unwrap().path().join("debootstrap/usr/bin/dpkg").exists();
        let started = || fs::read_dir(&work).is_ok_and(|mut entries| entries.any(unpacked));
        while !started() {
            assert!(!building.is_finished(), "it is over already");
            thread::sleep(Duration::from_millis(20));
        }
        cancel.cancel();
        building.join().unwrap()
    });
    assert_eq!(stopped.unwrap_err().kind(), block::ErrorKind::Interrupted);
    assert_eq!(fs::read_dir(&work).unwrap().count(), 0);
    assert!(!mounts().contains(work.to_str().unwrap()), "{}", mounts());
}
