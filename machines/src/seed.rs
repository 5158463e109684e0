//! A seed for cloud-init: a small disk from which a guest that brings cloud-init along makes itself a machine of its own, when it is started
//! the first time (cloud-init's documentation, "`NoCloud`"). For disks whose root is no ext4 filesystem, or whose maker wants it so.

use std::net::IpAddr;
use std::sync::Arc;

use block::{BlockDevice, Result, Storage};
use ext4_reader::LastLink;
use fat_builder::{Builder, Options, Time};
use serde_json::{Value, json};

use crate::Root;
use crate::personalise::{Addressing, AuthorizedKeys};
use crate::store::Instance;

/// Bytes of the disk: about the least that a FAT32 filesystem can have. Next to none of it is written.
const SIZE: u64 = 34 << 20;

/// By which cloud-init knows the disk.
const LABEL: &str = "CIDATA";

/// What is there where a system reads seeds: cloud-init itself, its settings, or those of Alpine's tiny-cloud.
const READERS: [&[u8]; 3] = [b"/usr/bin/cloud-init", b"/etc/cloud", b"/etc/tiny-cloud.conf"];

/// What a guest is to make of itself.
#[derive(Clone, Debug, Default)]
pub struct Seed {
    /// What it calls itself; `None` for the instance's name.
    pub hostname: Option<String>,
    /// Who may log in, as whom; without a name, the user that the image has for that.
    pub login: Option<(Option<String>, AuthorizedKeys)>,
    /// How its network card gets its addresses.
    pub network: Option<Addressing>,
}

impl Seed {
    /// Whether something in the system on a disk would read a seed; `None` for a disk without a root filesystem that could be
    /// looked into.
    pub fn has_reader(disk: &Arc<dyn BlockDevice>) -> Option<bool> {
        let filesystem = Root::find(disk).ok()??.filesystem().ok()?;
        let is_there = |path| filesystem.resolve(path, LastLink::Keep).is_ok();
        Some(READERS.into_iter().any(is_there))
    }

    /// Writes the disk for an instance.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn write(&self, instance: &Instance, storage: &dyn Storage) -> Result<()> {
        let volume = instance.document.uuid.as_u64_pair().0 as u32;
        let time = Time {
            secs: instance.document.created.as_second(),
        };
        let mut options = Options::new(SIZE, volume);
        LABEL.clone_into(&mut options.label);
        options.time = time;
        let mut builder = Builder::new(storage, options)?;
        for (name, text) in self.files(instance) {
            let bytes = text.as_bytes();
            builder.file(
                builder.root(),
                name.as_bytes(),
                time,
                bytes.len() as u64,
                &mut &*bytes,
            )?;
        }
        builder.finish()?;
        Ok(())
    }

    /// Names and contents. JSON is YAML, and needs no quoting of ours.
    fn files(&self, instance: &Instance) -> Vec<(&'static str, String)> {
        let hostname = self.hostname.as_deref().unwrap_or(instance.name.as_str());
        let about = json!({
            "instance-id": instance.document.uuid,
            "local-hostname": hostname,
        });
        let mut files = vec![
            ("meta-data", text(&about)),
            (
                "user-data",
                format!("#cloud-config\n{}", text(&self.user_data(hostname))),
            ),
        ];
        if let Some(network) = &self.network {
            files.push((
                "network-config",
                text(&network_config(&instance.mac().to_string(), network)),
            ));
        }
        files
    }

    fn user_data(&self, hostname: &str) -> Value {
        let mut data = json!({"hostname": hostname, "manage_etc_hosts": true});
        match &self.login {
            Some((None, keys)) => data["ssh_authorized_keys"] = json!(keys.lines().collect::<Vec<_>>()),
            Some((Some(user), keys)) => {
                let keys = keys.lines().collect::<Vec<_>>();
                data["users"] = if user == "root" {
                    // Who is there already keeps the password, and may log in, which images have cloud-init refuse.
                    data["disable_root"] = json!(false);
                    json!(["default", {
                        "name": user,
                        "lock_passwd": false,
                        "ssh_authorized_keys": keys,
                    }])
                } else {
                    json!(["default", {
                        "name": user,
                        "lock_passwd": true,
                        "shell": "/bin/bash",
                        "sudo": "ALL=(ALL) NOPASSWD:ALL",
                        "ssh_authorized_keys": keys,
                    }])
                };
            }
            None => {}
        }
        data
    }
}

/// Version 2 of cloud-init's network configuration.
fn network_config(mac: &str, addressing: &Addressing) -> Value {
    let mut card = json!({"match": {"macaddress": mac}});
    match addressing {
        Addressing::Dhcp => card["dhcp4"] = json!(true),
        Addressing::Static(given) => {
            card["addresses"] = json!([format!("{}/{}", given.address, given.prefix)]);
            if let Some(gateway) = given.gateway {
                let key = match gateway {
                    IpAddr::V4(_) => "gateway4",
                    IpAddr::V6(_) => "gateway6",
                };
                card[key] = json!(gateway);
            }
            if !given.servers.is_empty() {
                card["nameservers"] = json!({"addresses": given.servers});
            }
        }
    }
    json!({"version": 2, "ethernets": {"card": card}})
}

fn text(value: &Value) -> String {
    format!("{value:#}\n")
}
