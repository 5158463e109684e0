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
    /// All files below a directory go, and directories stay, since services rely on those; but for records of logins, and for what
    /// says nothing: empty files, such as locks, and a README, which systems bring along.
    ClearFiles,
    /// A text is changed: `None` where it can stay.
    Edit(fn(&str) -> Option<String>),
    /// A text goes where it is one that has to.
    RemoveIf(fn(&str) -> bool),
    /// Texts go that a text names, where they are ones that have to.
    RemoveNamed(fn(&str) -> Vec<String>, fn(&str) -> bool),
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Empty => "emptied",
            Self::Remove | Self::RemoveIf(_) => "removed",
            Self::Clear => "emptied of all",
            Self::ClearFiles => "emptied of files",
            Self::Edit(_) => "edited",
            Self::RemoveNamed(..) => "removed where they are named",
        }
    }
}

use Action::{Clear, ClearFiles, Edit, Empty, Remove, RemoveIf, RemoveNamed};

use super::shares::{credentials_files, has_password, without_share_passwords};
use super::texts::{
    has_netplan_secret, has_network_key, has_secret_lines, names_initiator, with_generated_initiator,
    without_hwaddr, without_mac_address, without_network_secrets, without_own_name, without_passwords,
};

/// Where it is said what is mounted: fstab(5), systemd.mount(5), auto.master(5).
const MOUNTS: &[&str] = &[
    "/etc/fstab",
    "/etc/systemd/system/*.mount",
    "/etc/auto.*",
    "/etc/autofs/auto.*",
];

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
                "~/.bash_history-*.tmp",
                "~/.zsh_sessions",
                "~/.bash_sessions",
                "~/.local/share/fish/fish_history*",
                "~/.local/state/*_history",
                "~/.lesshst*",
                "~/.local/state/lesshst",
                "~/.viminfo*",
                "~/.mc/history",
                "~/.local/share/mc/history",
                "~/.local/share/recently-used.xbel*",
                "~/.local/share/nvim/shada",
                "~/.local/state/nvim/shada",
                "~/.wget-hsts",
                "~/.cache",
            ],
        )],
    },
    Operation {
        name: "sessions",
        description: "what users' sessions have left: keys of displays, and what programs put aside",
        by_default: true,
        actions: &[(
            Remove,
            &[
                "~/.Xauthority*",
                "~/.ICEauthority*",
                "~/.xsession-errors*",
                "~/.*.swp",
                "~/.ansible/tmp",
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
                    "/var/account/pacct",
                    "/var/log/account/pacct",
                ],
            ),
            (
                Remove,
                &[
                    "/var/lib/lastlog/lastlog2.db*",
                    "/var/lib/wtmpdb/wtmp.db*",
                    "/var/account/pacct-*",
                ],
            ),
        ],
    },
    Operation {
        name: "dhcp-leases",
        description: "addresses that the machine was given or gave to others, and who it said it was to get them",
        by_default: true,
        actions: &[
            (
                ClearFiles,
                &[
                    "/var/lib/dhcp",
                    "/var/lib/dhclient",
                    "/var/lib/dhcpcd",
                    "/var/lib/dhcpcd5",
                    "/var/db/dhcpcd",
                ],
            ),
            // A server does not start without them.
            (Empty, &["/var/lib/dhcpd/*"]),
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
                &[
                    "/etc/NetworkManager/system-connections/*",
                    "/usr/lib/NetworkManager/system-connections/*",
                    "/var/lib/NetworkManager/system-connections/*",
                ],
            ),
            (Clear, &["/var/lib/iwd"]),
            (Remove, &["/etc/sysconfig/network-scripts/keys-*"]),
        ],
    },
    Operation {
        name: "disk-names",
        description: "disks that the machine knows by their own numbers",
        by_default: true,
        actions: &[(Remove, &["/etc/lvm/devices/system.devices"])],
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
        name: "domain",
        description: "who the machine is in a domain, and what it has kept of the domain's users",
        by_default: true,
        actions: &[
            (
                Clear,
                &["/var/lib/sss/db", "/var/lib/sss/mc", "/var/lib/sss/keytabs"],
            ),
            (
                Remove,
                &[
                    "/var/lib/sss/secrets/*",
                    "/var/lib/samba/*.tdb",
                    "/var/lib/samba/private/*.tdb",
                    "/etc/ipa/ca.crt",
                    "/etc/ipa/default.conf",
                    "/etc/ipa/nssdb/*",
                    "/var/lib/ipa-client/sysrestore/*",
                    "/var/lib/ipa-client/pki/*",
                ],
            ),
        ],
    },
    Operation {
        name: "subscription",
        description: "by what a distribution's maker knows the machine, and lets it have packages",
        by_default: true,
        actions: &[(
            Remove,
            &[
                "/etc/pki/consumer/*",
                "/etc/pki/entitlement/*",
                "/etc/sysconfig/rhn/systemid",
                "/etc/sysconfig/rhn/osad-auth.conf",
                "/var/lib/yum/uuid",
                "/var/lib/ubuntu-advantage/private",
                "/var/lib/ubuntu-advantage/machine-token.json",
                "/etc/apt/auth.conf.d/90ubuntu-advantage",
                "/etc/zypp/credentials.d/SCCcredentials",
            ],
        )],
    },
    Operation {
        name: "enrolments",
        description: "keys by which services and devices elsewhere know the machine",
        by_default: true,
        actions: &[
            (
                Clear,
                &[
                    "/var/lib/puppet/ssl",
                    "/etc/puppet/ssl",
                    "/etc/puppetlabs/puppet/ssl",
                    "/var/lib/tailscale",
                    "/var/lib/bluetooth",
                ],
            ),
            (Remove, &["/etc/docker/key.json"]),
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
        actions: &[(Clear, &["/tmp", "/var/tmp"]), (ClearFiles, &["/run"])],
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
        name: "print-spool",
        description: "what is to be printed",
        by_default: true,
        actions: &[(ClearFiles, &["/var/spool/cups", "/var/spool/lpd"])],
    },
    Operation {
        name: "file-names",
        description: "lists of the names of all files, for locate",
        by_default: true,
        actions: &[(
            Remove,
            &[
                "/var/lib/plocate/plocate.db",
                "/var/lib/mlocate/mlocate.db",
                "/var/cache/locate/locatedb",
            ],
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
                "/etc/passwd~",
                "/etc/group~",
                "/etc/shadow~",
                "/etc/gshadow~",
                "/etc/passwd.bak",
                "/etc/group.bak",
                "/etc/shadow.bak",
                "/etc/gshadow.bak",
                "/var/backups/passwd.bak",
                "/var/backups/group.bak",
                "/var/backups/shadow.bak",
                "/var/backups/gshadow.bak",
            ],
        )],
    },
    Operation {
        name: "installer",
        description: "what the system's installer was told, passwords among it",
        by_default: true,
        actions: &[
            (
                Remove,
                &[
                    "/root/anaconda-ks.cfg",
                    "/root/original-ks.cfg",
                    "/root/initial-setup-ks.cfg",
                ],
            ),
            (Empty, &["/var/cache/debconf/passwords.dat"]),
        ],
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
                "~/.cargo/credentials",
                "~/.cargo/credentials.toml",
                "~/.config/containers/auth.json",
                "~/.docker/config.json",
                "~/.git-credentials",
                "~/.config/git/credentials",
                "~/.kube/config",
                "~/.netrc",
                "~/.msmtprc",
                "~/.mylogin.cnf",
                "~/.npmrc",
                "~/.password-store",
                "~/.pgpass",
                "~/.pypirc",
                "~/.config/rclone",
                "~/.gnupg/private-keys-v1.d",
                "~/.gnupg/secring.gpg",
                "~/.local/share/keyrings",
                "~/.s3cfg",
                "~/.subversion/auth",
                "~/.terraform.d/credentials.tfrc.json",
                "~/.vault-token",
            ],
        )],
    },
    Operation {
        name: "ssl-keys",
        description: "private keys of servers, without which those may not start",
        by_default: false,
        actions: &[(Clear, &["/etc/ssl/private"])],
    },
    Operation {
        name: "network-keys",
        description: "keys and passwords of networks, without which the machine does not get into those",
        by_default: false,
        actions: &[
            (ClearFiles, &["/etc/wireguard", "/etc/swanctl/private"]),
            (
                RemoveIf(has_network_key),
                &[
                    "/etc/systemd/network/*.netdev",
                    "/etc/wpa_supplicant.conf",
                    "/etc/wpa_supplicant/*.conf",
                    "/var/lib/connman/*.config",
                    "/var/lib/connman/*/settings",
                ],
            ),
            (
                RemoveIf(has_netplan_secret),
                &[
                    "/etc/netplan/*.yaml",
                    "/usr/lib/netplan/*.yaml",
                    "/lib/netplan/*.yaml",
                ],
            ),
            (
                RemoveIf(has_secret_lines),
                &[
                    "/etc/ppp/chap-secrets",
                    "/etc/ppp/pap-secrets",
                    "/etc/ipsec.secrets",
                ],
            ),
        ],
    },
    Operation {
        name: "share-passwords",
        description: "passwords of shares of CIFS and WebDAV, without which the machine cannot mount them",
        by_default: false,
        actions: &[
            (Edit(without_share_passwords), MOUNTS),
            (RemoveNamed(credentials_files, has_password), MOUNTS),
            (
                RemoveIf(has_password),
                &[
                    "/etc/*credentials",
                    "/etc/smbcredentials/*",
                    "/etc/samba/*cred*",
                    "/etc/cifs*/*",
                    "~/.smb*",
                    "~/.cifs*",
                    "~/.credentials",
                ],
            ),
            (
                RemoveIf(has_secret_lines),
                &["/etc/davfs2/secrets", "~/.davfs2/secrets"],
            ),
        ],
    },
    Operation {
        name: "service-keys",
        description: "keys and passwords of services, which machines that work together may have to share",
        by_default: false,
        actions: &[
            (
                Remove,
                &[
                    "/etc/munge/munge.key",
                    "/etc/corosync/authkey",
                    "/etc/pacemaker/authkey",
                    "/etc/bind/rndc.key",
                    "/etc/rndc.key",
                    "/etc/apt/auth.conf",
                    "/etc/apt/auth.conf.d/*",
                    "/etc/postfix/sasl_passwd*",
                    "/etc/samba/smbpasswd",
                    "/var/kerberos/krb5kdc/principal*",
                    "/var/kerberos/krb5kdc/.k5*",
                    "/var/lib/krb5kdc/principal*",
                    "/etc/krb5kdc/stash",
                    "/etc/credstore/*",
                    "/etc/credstore.encrypted/*",
                    "/etc/gitlab-runner/config.toml",
                    "/var/lib/snapd/device/private-keys-v1/*",
                    "/var/lib/tor/*/hs_ed25519_secret_key",
                    "/var/lib/waagent/*.prv",
                ],
            ),
            (RemoveIf(has_secret_lines), &["/etc/exim4/passwd.client"]),
        ],
    },
];

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
}
