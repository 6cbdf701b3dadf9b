//! The account that the service runs as once its broker has started: `user` in the configuration.

use std::ffi::CString;
use std::path::PathBuf;

use anyhow::{Context, bail};
use nix::unistd::{Gid, Uid, User, getegid, geteuid, getgrouplist, getgroups, setegid, seteuid, setgroups};

use crate::sandbox::Identity;

/// Who it is, and where it is at home.
#[derive(Debug)]
pub struct Account {
    pub identity: Identity,
    /// `None`: it has no entry in the password file.
    pub home: Option<PathBuf>,
    /// As configured.
    name: String,
}

impl Account {
    /// `name`, `uid` or `uid:gid`. `None` if the service already runs as it.
    ///
    /// # Errors
    /// There is no such account, it is root's, or we cannot become it.
    pub fn find(name: &str) -> anyhow::Result<Option<Self>> {
        let account = Self::look_up(name)?;
        if account.identity.user == 0 {
            bail!("user is {name}, which is root: name an account without privileges, or unset it");
        }
        let own = geteuid();
        if own.as_raw() == account.identity.user {
            return Ok(None);
        }
        if !own.is_root() {
            bail!(
                "user is {name} (uid {}), but the service was started as uid {own}, which cannot become it: start it as root, or unset \
                 user",
                account.identity.user
            );
        }
        Ok(Some(account))
    }

    fn look_up(name: &str) -> anyhow::Result<Self> {
        let (user, group) = match name.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (name, None),
        };
        let number =
            |text: &str| text.parse::<u32>().with_context(|| format!("user is {name}: {text} is not a number"));
        let known = match user.parse::<u32>() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)),
            Err(_) if group.is_some() => bail!("user is {name}: write a name, a uid or uid:gid"),
            Err(_) => User::from_name(user),
        };
        let known = known.with_context(|| format!("look up user {name}"))?;
        let uid = match &known {
            Some(known) => known.uid.as_raw(),
            None => number(user).with_context(|| format!("there is no user {name}"))?,
        };
        let gid = match (group, &known) {
            (Some(group), _) => number(group)?,
            (None, Some(known)) => known.gid.as_raw(),
            (None, None) => uid,
        };
        // An explicit group is all there is: whoever writes numbers wants what they say.
        let groups = match &known {
            Some(known) if group.is_none() => groups_of(known)?,
            _ => Vec::new(),
        };
        let home = known.map(|known| known.dir);
        Ok(Self { identity: Identity { user: uid, group: gid, groups }, home, name: name.to_owned() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does it as this account would: what it makes belongs to the account, and what the account may not do fails. For a process with
    /// one thread, before the broker starts.
    ///
    /// # Errors
    /// What `work` says, or the kernel refuses the change.
    pub fn act<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let (user, group, groups) = (geteuid(), getegid(), getgroups()?);
        let theirs: Vec<Gid> = self.identity.groups.iter().copied().map(Gid::from_raw).collect();
        let become_it = || {
            setgroups(&theirs)?;
            setegid(Gid::from_raw(self.identity.group))?;
            seteuid(Uid::from_raw(self.identity.user)) // Last: with it goes the right to the other two.
        };
        become_it().with_context(|| format!("become user {} (that takes CAP_SETUID and CAP_SETGID)", self.name))?;
        let done = work();
        seteuid(user).and_then(|()| setegid(group)).and_then(|()| setgroups(&groups)).context("become root again")?;
        done
    }
}

fn groups_of(user: &User) -> anyhow::Result<Vec<u32>> {
    let name = CString::new(user.name.as_str()).context("a user's name")?;
    let groups = getgrouplist(&name, user.gid).with_context(|| format!("look up the groups of {}", user.name))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_name_or_numbers() {
        let identity =
            |name: &str| Account::look_up(name).map(|account| account.identity).map_err(|err| format!("{err:#}"));
        let numbers = Identity { user: 54321, group: 54322, groups: Vec::new() };
        assert_eq!(identity("54321:54322"), Ok(numbers));
        assert_eq!(identity("54321"), Ok(Identity { user: 54321, group: 54321, groups: Vec::new() }));
        let nobody = identity("nobody").expect("every system has it");
        assert!(nobody.user != 0 && nobody.groups.contains(&nobody.group), "{nobody:?}");
        for (name, problem) in
            [("no-such-user", "there is no user no-such-user"), ("nobody:1", "uid:gid"), ("1:x", "not a number")]
        {
            assert!(identity(name).is_err_and(|err| err.contains(problem)), "{name}");
        }
    }

    #[test]
    fn root_is_no_user_to_drop_to() {
        let refused = Account::find("0").expect_err("refused").to_string();
        assert!(refused.contains("which is root"), "{refused}");
    }
}
