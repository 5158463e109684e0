//! What makes a clone a machine of its own, as the command line says it.

use std::path::PathBuf;

use block::{Error, Result};
use clap::{Args, ValueEnum};
use machines::Seed;
use machines::personalise::{Addressing, AuthorizedKeys, Identity};
use machines::store::{Hostname, Instance, NewInstances, Template};

use crate::arguments::text_of;

/// What is changed on the disk of a clone.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PersonalArgs {
    /// What a single machine calls itself, with a domain or without: web.example.org [default: NAME]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// A file with public keys of those who may log in; more than one can be given
    #[arg(long, value_name = "FILE")]
    ssh_key: Vec<PathBuf>,
    /// Who they log in as; where there is none, such a user is made, who may do everything by sudo without a password [default: the
    /// template's user, or root]
    #[arg(long, value_name = "NAME", requires = "ssh_key")]
    user: Option<String>,
    /// The address: dhcp, or ADDRESS/PREFIX[,gw=ADDRESS][,dns=ADDRESS]... [default: as in the template]
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Addressing>,
    /// Who makes it a machine of its own: imgtool, by changing files on its disk, or cloud-init in the guest, which is given a second
    /// disk that says what to do; a template without cloud-init is told of
    #[arg(long, value_enum, default_value_t, value_name = "WHO")]
    seed: SeedArg,
    /// Change nothing on the disk
    #[arg(long, conflicts_with_all = ["hostname", "ssh_key", "ip"])]
    as_is: bool,
}

/// Who makes a clone a machine of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum SeedArg {
    /// Files on its disk are changed.
    #[default]
    None,
    /// cloud-init reads a disk called CIDATA.
    Nocloud,
}

/// The same, read and checked.
pub(crate) struct Personal {
    hostname: Option<Hostname>,
    login: Option<(String, AuthorizedKeys)>,
    ip: Option<Addressing>,
    /// What cloud-init is told.
    pub(crate) seed: Option<Seed>,
    /// Nothing on the disk is changed, or not by us.
    pub(crate) as_is: bool,
    /// Something was asked for by name, and must not be left out.
    pub(crate) is_asked: bool,
}

impl PersonalArgs {
    pub(crate) fn read(&self, template: &Template, new: &NewInstances) -> Result<Personal> {
        if self.as_is && self.seed == SeedArg::Nocloud {
            let message = "a clone cannot be left as it is, and be told by a seed what to become";
            return Err(Error::invalid(message)
                .with_hint("leave out --as-is: with --seed nocloud, nothing on the disk is changed"));
        }
        if new.names.len() > 1 && matches!(self.ip, Some(Addressing::Static(_))) {
            return Err(Error::invalid("several machines cannot share an address").with_hint("--ip dhcp"));
        }
        if new.names.len() > 1 && self.hostname.is_some() {
            return Err(Error::invalid("several machines cannot share a hostname")
                .with_hint("leave out --hostname: each is called by its name"));
        }
        let mut keys = String::new();
        for path in &self.ssh_key {
            let text = text_of(path, "a list of keys")?;
            AuthorizedKeys::parse(&text).map_err(|error| error.with_path(path))?;
            keys.push_str(text.trim_end());
            keys.push('\n');
        }
        let hostname = self.hostname.as_deref().map(str::parse::<Hostname>).transpose()?;
        let user = self.user.clone().or_else(|| template.document.user.clone());
        let seed = (self.seed == SeedArg::Nocloud).then(|| -> Result<Seed> {
            Ok(Seed {
                hostname: self.hostname.clone(),
                login: if keys.is_empty() {
                    None
                } else {
                    Some((user.clone(), AuthorizedKeys::parse(&keys)?))
                },
                network: self.ip.clone(),
            })
        });
        let login = if keys.is_empty() {
            None
        } else {
            let user = user.unwrap_or_else(|| "root".to_owned());
            Some((user, AuthorizedKeys::parse(&keys)?))
        };
        Ok(Personal {
            is_asked: self.hostname.is_some() || login.is_some() || self.ip.is_some(),
            hostname,
            login,
            ip: self.ip.clone(),
            as_is: self.as_is || seed.is_some(),
            seed: seed.transpose()?,
        })
    }
}

impl Personal {
    /// Who an instance is to be.
    pub(crate) fn identity(&self, instance: &Instance) -> Result<Identity> {
        let own = self.hostname.as_ref().map(Hostname::as_str);
        let mut identity = Identity::new(own.unwrap_or(instance.name.as_str()))?;
        identity.login.clone_from(&self.login);
        identity.network = self.ip.clone().map(|ip| (instance.mac().0, ip));
        Ok(identity)
    }
}
