//! What must not be in a template: one entry for each kind of thing, with where it is and what becomes of it.
//!
//! Paths start at the root of the guest. `~` stands for the home of every user, and `*` for any part of one name.

/// One kind of thing.
#[derive(Debug)]
pub struct Operation {
    /// What it is chosen by.
    pub name: &'static str,
    /// What it is about.
    pub description: &'static str,
    /// Done unless it is disabled; otherwise only when it is enabled.
    pub by_default: bool,
    pub(super) actions: &'static [(Action, &'static [&'static str])],
}

impl Operation {
    /// Each path that it looks at, and in a word what becomes of what is there.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let each = self.actions.iter();
        each.flat_map(|(action, paths)| paths.iter().map(|path| (*path, action.word())))
    }
}

/// What becomes of what is at a path.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    /// A file loses its content, and stays.
    Empty,
    /// A file or a directory with all that is in it goes.
    Remove,
    /// All that is in a directory goes, and the directory stays.
    Clear,
    /// All files below a directory go, and directories stay, since services rely on those; but for records of logins.
    ClearFiles,
    /// A text is changed: `None` where it can stay.
    Edit(fn(&str) -> Option<String>),
    /// A text goes where it is one that has to.
    RemoveIf(fn(&str) -> bool),
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Empty => "emptied",
            Self::Remove | Self::RemoveIf(_) => "removed",
            Self::Clear => "emptied of all",
            Self::ClearFiles => "emptied of files",
            Self::Edit(_) => "edited",
        }
    }
}

use Action::{Clear, ClearFiles, Edit, Empty, Remove, RemoveIf};

/// Who the machine is to servers of iSCSI.
const INITIATOR: &str = "/etc/iscsi/initiatorname.iscsi";

/// Files that programs append to only where they are there.
pub(super) const LOGIN_RECORDS: [&[u8]; 5] = [b"wtmp", b"btmp", b"lastlog", b"faillog", b"tallylog"];

/// All of them, in the order in which they are done.
pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "machine-id",
        description: "the machine's ID, which is made at the first start, and what is derived from it",
        by_default: true,
        actions: &[
            (Empty, &["/etc/machine-id"]),
            (Remove, &["/var/lib/dbus/machine-id", "/etc/hostid"]),
        ],
    },
    Operation {
        name: "ssh-hostkeys",
        description: "keys by which the machine shows who it is",
        by_default: true,
        actions: &[(
            Remove,
            &["/etc/ssh/ssh_host_*", "/etc/dropbear/dropbear_*_host_key"],
        )],
    },
    Operation {
        name: "ssh-authorized-keys",
        description: "who may log in with a key",
        by_default: true,
        actions: &[(Remove, &["~/.ssh/authorized_keys*"])],
    },
    Operation {
        name: "ssh-known-hosts",
        description: "machines that users have logged in to",
        by_default: true,
        actions: &[(Remove, &["~/.ssh/known_hosts*"])],
    },
    Operation {
        name: "ssh-private-keys",
        description: "users' own keys",
        by_default: true,
        actions: &[(Remove, &["~/.ssh/id_*", "~/.ssh/identity*", "~/.ssh/*.pem"])],
    },
    Operation {
        name: "shell-history",
        description: "what users have typed, and files that they have looked at",
        by_default: true,
        actions: &[(
            Remove,
            &[
                "~/.*_history",
                "~/.history",
                "~/.histfile",
                "~/.local/share/fish/fish_history",
                "~/.local/state/*_history",
                "~/.lesshst*",
                "~/.local/state/lesshst",
                "~/.viminfo",
                "~/.local/share/nvim/shada",
                "~/.local/state/nvim/shada",
                "~/.wget-hsts",
                "~/.cache",
            ],
        )],
    },
    Operation {
        name: "logs",
        description: "logs and the journal; directories stay",
        by_default: true,
        actions: &[(Clear, &["/var/log/journal"]), (ClearFiles, &["/var/log"])],
    },
    Operation {
        name: "login-records",
        description: "who has logged in, and when",
        by_default: true,
        actions: &[
            (
                Empty,
                &[
                    "/var/log/wtmp",
                    "/var/log/btmp",
                    "/var/log/lastlog",
                    "/var/log/faillog",
                    "/var/log/tallylog",
                ],
            ),
            (
                Remove,
                &["/var/lib/lastlog/lastlog2.db*", "/var/lib/wtmpdb/wtmp.db*"],
            ),
        ],
    },
    Operation {
        name: "dhcp-leases",
        description: "addresses that the machine was given, and who it said it was to get them",
        by_default: true,
        actions: &[
            (
                ClearFiles,
                &[
                    "/var/lib/dhcp",
                    "/var/lib/dhclient",
                    "/var/lib/dhcpcd",
                    "/var/lib/dhcpcd5",
                ],
            ),
            (
                Remove,
                &[
                    "/etc/dhcpcd.duid",
                    "/etc/dhcpcd.secret",
                    "/var/lib/NetworkManager/*.lease",
                    "/var/lib/NetworkManager/secret_key",
                    "/var/lib/NetworkManager/seen-bssids",
                    "/var/lib/NetworkManager/timestamps",
                ],
            ),
        ],
    },
    Operation {
        name: "net-names",
        description: "names that network cards got by their addresses",
        by_default: true,
        actions: &[(
            Remove,
            &[
                "/etc/udev/rules.d/70-persistent-net.rules",
                "/etc/udev/rules.d/75-persistent-net.rules",
            ],
        )],
    },
    Operation {
        name: "net-addresses",
        description: "network cards' addresses in what is said of connections",
        by_default: true,
        actions: &[
            (Edit(without_hwaddr), &["/etc/sysconfig/network-scripts/ifcfg-*"]),
            (
                Edit(without_mac_address),
                &["/etc/NetworkManager/system-connections/*"],
            ),
        ],
    },
    Operation {
        name: "net-secrets",
        description: "passwords of networks",
        by_default: true,
        actions: &[
            (
                Edit(without_network_secrets),
                &["/etc/NetworkManager/system-connections/*"],
            ),
            (Clear, &["/var/lib/iwd"]),
        ],
    },
    Operation {
        name: "random-seed",
        description: "random numbers that would be the same in all machines",
        by_default: true,
        actions: &[(
            Remove,
            &[
                "/var/lib/systemd/random-seed",
                "/var/lib/random-seed",
                "/var/lib/urandom/random-seed",
                "/var/lib/seedrng/seed.*",
                "/var/lib/misc/random-seed",
            ],
        )],
    },
    Operation {
        name: "machine-secrets",
        description: "keys that encrypt or identify for this machine alone",
        by_default: true,
        actions: &[
            (
                Remove,
                &[
                    "/var/lib/systemd/credential.secret",
                    "/etc/krb5.keytab",
                    "/etc/nvme/hostid",
                    "/etc/nvme/hostnqn",
                ],
            ),
            (Edit(with_generated_initiator), &[INITIATOR]),
            (RemoveIf(names_initiator), &[INITIATOR]),
        ],
    },
    Operation {
        name: "package-cache",
        description: "packages, and lists of them, that can be fetched again",
        by_default: true,
        actions: &[
            (ClearFiles, &["/var/cache/apt", "/var/lib/apt/lists"]),
            (
                Clear,
                &[
                    "/var/cache/apk",
                    "/var/cache/dnf",
                    "/var/cache/libdnf5",
                    "/var/cache/yum",
                    "/var/cache/zypp",
                    "/var/cache/pacman/pkg",
                ],
            ),
        ],
    },
    Operation {
        name: "cloud-init",
        description: "what cloud-init has done already, so that it is done again for each machine",
        by_default: true,
        actions: &[
            (Clear, &["/var/lib/cloud"]),
            (
                Remove,
                &[
                    "/var/log/cloud-init*",
                    "/etc/netplan/50-cloud-init.yaml",
                    "/etc/network/interfaces.d/50-cloud-init*",
                    "/etc/NetworkManager/system-connections/cloud-init-*",
                ],
            ),
        ],
    },
    Operation {
        name: "tmp",
        description: "temporary files",
        by_default: true,
        actions: &[(Clear, &["/tmp", "/var/tmp"])],
    },
    Operation {
        name: "mail-spool",
        description: "mail that users have, or that is to be sent",
        by_default: true,
        actions: &[(
            ClearFiles,
            &[
                "/var/mail",
                "/var/spool/mail",
                "/var/spool/exim4/input",
                "/var/spool/exim4/msglog",
                "/var/spool/postfix/active",
                "/var/spool/postfix/bounce",
                "/var/spool/postfix/corrupt",
                "/var/spool/postfix/defer",
                "/var/spool/postfix/deferred",
                "/var/spool/postfix/incoming",
                "/var/spool/postfix/maildrop",
            ],
        )],
    },
    Operation {
        name: "cron-spool",
        description: "users' own jobs for later",
        by_default: true,
        actions: &[(
            ClearFiles,
            &["/var/spool/cron", "/var/spool/anacron", "/var/spool/at"],
        )],
    },
    Operation {
        name: "crash-data",
        description: "memory of programs and kernels that have crashed",
        by_default: true,
        actions: &[(
            Clear,
            &[
                "/var/crash",
                "/var/lib/systemd/coredump",
                "/var/lib/systemd/pstore",
                "/var/spool/abrt",
                "/var/lib/kdump",
            ],
        )],
    },
    Operation {
        name: "passwd-backups",
        description: "users and passwords as they were before the last change",
        by_default: true,
        actions: &[(
            Remove,
            &[
                "/etc/passwd-",
                "/etc/group-",
                "/etc/shadow-",
                "/etc/gshadow-",
                "/etc/subuid-",
                "/etc/subgid-",
            ],
        )],
    },
    Operation {
        name: "hostname",
        description: "what the machine calls itself",
        by_default: true,
        actions: &[
            (Remove, &["/etc/hostname"]),
            (Edit(without_own_name), &["/etc/hosts"]),
        ],
    },
    Operation {
        name: "passwords",
        description: "passwords of users, who can then log in with keys only",
        by_default: false,
        actions: &[(Edit(without_passwords), &["/etc/shadow"])],
    },
    Operation {
        name: "credentials",
        description: "passwords and keys of users for services elsewhere",
        by_default: false,
        actions: &[(
            Remove,
            &[
                "~/.aws",
                "~/.azure",
                "~/.config/gcloud",
                "~/.config/gh/hosts.yml",
                "~/.docker/config.json",
                "~/.git-credentials",
                "~/.config/git/credentials",
                "~/.kube/config",
                "~/.netrc",
                "~/.npmrc",
                "~/.pgpass",
                "~/.pypirc",
            ],
        )],
    },
    Operation {
        name: "ssl-keys",
        description: "private keys of servers, without which those may not start",
        by_default: false,
        actions: &[(Clear, &["/etc/ssl/private"])],
    },
];

/// The text without the lines that are to go.
fn without(text: &str, goes: impl Fn(&str) -> bool) -> Option<String> {
    let lines = text.split_inclusive('\n');
    let kept: String = lines.filter(|line| !goes(line.trim())).collect();
    (kept != text).then_some(kept)
}

/// The key of a line `key=value`.
fn key(line: &str) -> &str {
    line.split('=').next().unwrap_or_default().trim()
}

fn without_hwaddr(text: &str) -> Option<String> {
    without(text, |line| matches!(key(line), "HWADDR" | "MACADDR"))
}

fn without_mac_address(text: &str) -> Option<String> {
    without(text, |line| {
        line.contains('=')
            && matches!(
                key(line),
                "mac-address" | "cloned-mac-address" | "permanent-mac-address"
            )
    })
}

fn without_network_secrets(text: &str) -> Option<String> {
    let keys = ["psk", "password", "private-key-password", "pin", "leap-password"];
    without(text, |line| {
        line.contains('=') && (keys.contains(&key(line)) || key(line).starts_with("wep-key"))
    })
}

/// Debian's open-iscsi makes another name where the file asks for that, and does not start without the file.
fn with_generated_initiator(text: &str) -> Option<String> {
    let is_debian = |line: &str| {
        line.trim_start()
            .starts_with("InitiatorName=iqn.1993-08.org.debian:")
    };
    text.lines()
        .any(is_debian)
        .then(|| "GenerateName=yes\n".to_owned())
}

/// Others make one where there is no file.
fn names_initiator(text: &str) -> bool {
    with_generated_initiator(text).is_none()
        && text
            .lines()
            .any(|line| line.trim_start().starts_with("InitiatorName="))
}

/// The line of hosts(5) that Debian's installer makes for the machine's own name.
fn without_own_name(text: &str) -> Option<String> {
    without(text, |line| line.split_whitespace().next() == Some("127.0.1.1"))
}

/// shadow(5) with "*" for every password: none fits, and who has a key may still log in.
fn without_passwords(text: &str) -> Option<String> {
    let lines = text.split_inclusive('\n').map(|line| {
        let mut fields: Vec<&str> = line.split(':').collect();
        match fields.get_mut(1) {
            Some(password) if is_password(password) => *password = "*",
            _ => return line.to_owned(),
        }
        fields.join(":")
    });
    let locked: String = lines.collect();
    (locked != text).then_some(locked)
}

/// Whether some password, or none at all, lets its user in.
fn is_password(field: &str) -> bool {
    !field.starts_with(['!', '*'])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_words_and_differ() {
        let names: BTreeSet<&str> = OPERATIONS.iter().map(|operation| operation.name).collect();
        assert_eq!(names.len(), OPERATIONS.len());
        for operation in OPERATIONS {
            for (path, _) in operation.paths() {
                assert!(path.starts_with('/') || path.starts_with("~/"), "{path}");
            }
        }
    }

    #[test]
    fn only_what_is_private_is_edited_out() {
        let shadow = "root:$y$j9T$abc:19700:0:99999:7:::\nbin:*:1::::::\na:!$6$x:1::::::\nopen::1::::::\n";
        let locked = "root:*:19700:0:99999:7:::\nbin:*:1::::::\na:!$6$x:1::::::\nopen:*:1::::::\n";
        assert_eq!(without_passwords(shadow).as_deref(), Some(locked));
        assert_eq!(without_passwords(locked), None);
        let connection = "[wifi]\nssid=home\n[wifi-security]\nkey-mgmt=wpa-psk\npsk=secret\n[ethernet]\nmac-address=52:54:00:00:00:01\n";
        let open = without_network_secrets(connection).unwrap();
        assert!(!open.contains("secret") && open.contains("ssid=home") && open.contains("mac-address"));
        assert!(!without_mac_address(&open).unwrap().contains("52:54"));
        assert_eq!(
            without_own_name("127.0.0.1 localhost\n127.0.1.1 old\n::1 localhost").as_deref(),
            Some("127.0.0.1 localhost\n::1 localhost")
        );
        let debian = "## DO NOT EDIT\nInitiatorName=iqn.1993-08.org.debian:01:abc\n";
        let made_anew = with_generated_initiator(debian).unwrap();
        assert!(made_anew == "GenerateName=yes\n" && !names_initiator(debian));
        assert!(with_generated_initiator(&made_anew).is_none() && !names_initiator(&made_anew));
        let redhat = "InitiatorName=iqn.1994-05.com.redhat:abc\n";
        assert!(with_generated_initiator(redhat).is_none() && names_initiator(redhat));
        assert_eq!(
            without_hwaddr("DEVICE=eth0\nHWADDR=\"x\"\n").as_deref(),
            Some("DEVICE=eth0\n")
        );
    }
}
