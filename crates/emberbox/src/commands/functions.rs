//! `emberbox functions`

use std::process::ExitCode;

use anyhow::Result;
use lambda_api::operations::ListFunctions;
use lambda_api::types::{FunctionConfiguration, ListFunctionsRequest};

use super::{print, print_json, table};
use crate::cli::Functions;
use crate::client::Client;
use crate::units::show_size;

/// Lists all functions of the account.
pub async fn run(client: &Client, args: Functions) -> Result<ExitCode> {
    let mut functions: Vec<FunctionConfiguration> = Vec::new();
    let mut marker = None;
    loop {
        let page = client.call::<ListFunctions>(&ListFunctionsRequest { marker, ..Default::default() }).await?;
        functions.extend(page.functions.unwrap_or_default());
        marker = page.next_marker.filter(|marker| !marker.is_empty());
        if marker.is_none() {
            break;
        }
    }
    if args.json {
        print_json(&functions)?;
        return Ok(ExitCode::SUCCESS);
    }
    if functions.is_empty() {
        eprintln!("No functions at {} yet. `emberbox deploy PATH --name NAME` makes one.", client.endpoint());
        return Ok(ExitCode::SUCCESS);
    }
    print(list(&functions).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn list(functions: &[FunctionConfiguration]) -> String {
    let rows = functions.iter().map(|f| {
        vec![
            f.function_name.clone().unwrap_or_default(),
            f.runtime.as_ref().map(ToString::to_string).unwrap_or_default(),
            f.memory_size.map(|mb| format!("{mb} MB")).unwrap_or_default(),
            f.timeout.map(|s| format!("{s} s")).unwrap_or_default(),
            show_size(f.code_size.unwrap_or_default().try_into().unwrap_or_default()),
            f.last_modified.clone().unwrap_or_default().chars().take(16).collect::<String>().replace('T', " "),
        ]
    });
    table(&["NAME", "RUNTIME", "MEMORY", "TIMEOUT", "CODE", "MODIFIED (UTC)"], rows)
}
