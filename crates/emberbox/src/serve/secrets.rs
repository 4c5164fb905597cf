//! The keys of the functions' environment variables: from the operator's file, or from one of our own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use secrets::Keyring;
use store::Store;
#[cfg(feature = "cluster")]
use store::{Op, Precondition};

use crate::config::Config;

/// For a server on its own: reads the keys. Makes them at a first start, unless the configuration names a file, or the
/// metadata are encrypted already: with a new key nobody could read them.
pub async fn own_keys(config: &Config, dir: &Path, store: &dyn Store) -> Result<Keyring> {
    let own = dir.join("secrets.key");
    match &config.secrets_file {
        Some(path) => given(path, store).await,
        None => match there(&own, store).await? {
            Some(keys) => Ok(keys),
            None => Ok(secrets::create(&own)?),
        },
    }
}

/// Where the metadata say which key encrypts.
#[cfg(feature = "cluster")]
const KEY_RECORD: (&str, &str) = ("fleet", "secrets-key");

/// For a server of a fleet: reads the keys, which all of its servers must have, so none makes them. Servers with different
/// files would write what the others cannot read, so the metadata have the name of the key that encrypts, and who has it not does not start.
#[cfg(feature = "cluster")]
pub async fn fleet_keys(config: &Config, store: &dyn Store) -> Result<Keyring> {
    match &config.secrets_file {
        Some(path) => {
            let keys = given(path, store).await?;
            agree(&keys, path, store).await?;
            Ok(keys)
        }
        None => bail!(
            "a fleet needs a file of keys that is the same on all of its servers, for the functions' environment variables: \
             set `secrets_file` in the configuration. The first file is made by: openssl rand -base64 32 > secrets.key"
        ),
    }
}

/// Looks whether the fleet encrypts with a key that is here, and says so if this server begins another one: the first line of
/// its file, while all others have that as well ("add it last everywhere, then move it first").
#[cfg(feature = "cluster")]
async fn agree(keys: &Keyring, path: &Path, store: &dyn Store) -> Result<()> {
    let (kind, name) = KEY_RECORD;
    loop {
        let record = store.get(kind, name).await.context("read which key the fleet encrypts with")?;
        let fleet = match &record {
            Some(record) => Some(String::from_utf8_lossy(&record.value).into_owned()),
            // Of a fleet of before there was such a record, or a new one.
            None => control_plane::encrypted_with(store).await.context("look for encrypted metadata")?,
        };
        if let Some(fleet) = fleet.filter(|fleet| !keys.ids().any(|id| id == fleet)) {
            bail!(
                "the fleet encrypts the functions' environment variables with the key {fleet}, and {}, which `secrets_file` in the \
                 configuration names, has {}: this server could not read what others write, nor they what it writes. Copy the file \
                 from another server of the fleet; nothing was changed",
                path.display(),
                keys.ids().collect::<Vec<_>>().join(", ")
            );
        }
        let precondition = match record {
            Some(record) if record.value == keys.current().as_bytes() => return Ok(()),
            Some(record) => Precondition::Version(record.version),
            None => Precondition::DoesNotExist,
        };
        match store.commit(vec![Op::put(kind, name, keys.current().to_owned()).when(precondition)]).await {
            Ok(_) => return Ok(()),
            // Another one was first.
            Err(error) if error.retryable() => {}
            Err(error) => return Err(error).context("write which key the fleet encrypts with"),
        }
    }
}

/// That which the configuration names.
async fn given(path: &Path, store: &dyn Store) -> Result<Keyring> {
    let Some(keys) = there(path, store).await? else {
        bail!(
            "{}, which `secrets_file` in the configuration names, is not there. Copy it from another server of the fleet; the \
             first one is made by: openssl rand -base64 32",
            path.display()
        );
    };
    Ok(keys)
}

/// `None`: there is no file, and nothing that needs it.
async fn there(path: &Path, store: &dyn Store) -> Result<Option<Keyring>> {
    if let Some(keys) = secrets::read(path)? {
        warn_if_open_to_others(path);
        return Ok(Some(keys));
    }
    match control_plane::encrypted_with(store).await.context("look for encrypted metadata")? {
        None => Ok(None),
        Some(key) => bail!(
            "{} is not there, and the functions' environment variables are encrypted with the key {key}. Put the file back, from \
             a backup or from another server of the fleet; nothing was changed",
            path.display()
        ),
    }
}

/// Whoever reads the keys and the metadata reads the variables. Not refused: where files come from a Kubernetes secret, their
/// modes are not the operator's.
fn warn_if_open_to_others(path: &Path) {
    if path.metadata().is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0) {
        tracing::warn!(
            "{} can be read or written by others than its owner; chmod 600 it where nobody else needs it",
            path.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use store::{Op, SqliteStore};

    use super::*;

    async fn store(dir: &Path) -> SqliteStore {
        SqliteStore::open(dir.join("metadata.sqlite")).await.unwrap()
    }

    #[tokio::test]
    async fn keys_are_made_once_and_only_where_nothing_is_encrypted() {
        let dir = tempfile::tempdir().unwrap();
        let (store, config, file) = (store(dir.path()).await, Config::default(), dir.path().join("secrets.key"));
        let made = own_keys(&config, dir.path(), &store).await.unwrap();
        assert_eq!(own_keys(&config, dir.path(), &store).await.unwrap().current(), made.current());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);

        let record = br#"{"latest":{"settings":{"environment":"v1:0123456789ab:AAAA"}}}"#;
        let put = Op::put("function", "000000000000/us-east-1/f", &record[..]);
        store.commit(vec![put]).await.unwrap();
        fs::remove_file(&file).unwrap();
        let error = own_keys(&config, dir.path(), &store).await.unwrap_err().to_string();
        for words in [&*file.display().to_string(), "the key 0123456789ab", "Put the file back", "nothing was changed"]
        {
            assert!(error.contains(words), "{error} should say {words}");
        }
        assert!(!file.exists(), "no new key stands in the way of the old one");
        store.close().await;
    }

    #[tokio::test]
    async fn a_file_of_the_configuration_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let file = dir.path().join("fleet.key");
        let config = Config { secrets_file: Some(file.clone()), ..Config::default() };
        let error = own_keys(&config, dir.path(), &store).await.unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()) && error.contains("openssl"), "{error}");
        let made = secrets::create(&file).unwrap();
        assert_eq!(own_keys(&config, dir.path(), &store).await.unwrap().current(), made.current());
        assert!(!dir.path().join("secrets.key").exists());
        store.close().await;
    }

    #[cfg(feature = "cluster")]
    #[tokio::test]
    async fn a_fleet_has_its_keys_from_the_operator() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let error = fleet_keys(&Config::default(), &store).await.unwrap_err().to_string();
        assert!(error.contains("`secrets_file`") && error.contains("openssl"), "{error}");
        let config = Config { secrets_file: Some(dir.path().join("fleet.key")), ..Config::default() };
        assert!(fleet_keys(&config, &store).await.is_err(), "it is not made");
        let made = secrets::create(&dir.path().join("fleet.key")).unwrap();
        assert_eq!(fleet_keys(&config, &store).await.unwrap().current(), made.current());
        store.close().await;
    }

    #[cfg(feature = "cluster")]
    #[tokio::test]
    async fn members_of_a_fleet_have_the_key_that_the_others_have() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let file = |name: &str| dir.path().join(name);
        let with = |name: &str| Config { secrets_file: Some(file(name)), ..Config::default() };
        let (first, second) = (secrets::create(&file("a")).unwrap(), secrets::create(&file("b")).unwrap());
        fleet_keys(&with("a"), &store).await.unwrap();
        let error = fleet_keys(&with("b"), &store).await.unwrap_err().to_string();
        for words in [first.current(), second.current(), &file("b").display().to_string(), "nothing was changed"] {
            assert!(error.contains(words), "{error} should say {words}");
        }
        fleet_keys(&with("a"), &store).await.unwrap();

        // As keys are changed: last everywhere, then first everywhere.
        let (a, b) = (fs::read_to_string(file("a")).unwrap(), fs::read_to_string(file("b")).unwrap());
        fs::write(file("a-b"), format!("{a}{b}")).unwrap();
        fs::write(file("b-a"), format!("{b}{a}")).unwrap();
        fleet_keys(&with("a-b"), &store).await.unwrap();
        fleet_keys(&with("b-a"), &store).await.unwrap();
        let error = fleet_keys(&with("a"), &store).await.unwrap_err().to_string();
        assert!(error.contains(second.current()), "{error}");
        fleet_keys(&with("a-b"), &store).await.unwrap();
        store.close().await;
    }

    #[cfg(feature = "cluster")]
    #[tokio::test]
    async fn what_a_fleet_encrypted_before_there_was_a_record_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let config = Config { secrets_file: Some(dir.path().join("fleet.key")), ..Config::default() };
        secrets::create(&dir.path().join("fleet.key")).unwrap();
        let record = br#"{"latest":{"settings":{"environment":"v1:0123456789ab:AAAA"}}}"#;
        store.commit(vec![Op::put("function", "000000000000/us-east-1/f", &record[..])]).await.unwrap();
        let error = fleet_keys(&config, &store).await.unwrap_err().to_string();
        assert!(error.contains("the key 0123456789ab"), "{error}");
        assert!(store.get("fleet", "secrets-key").await.unwrap().is_none(), "the wrong key is not the fleet's");
        store.close().await;
    }
}
