// The AWS SDK for JavaScript as a client: a function's life. Arguments: name, runtime, role, zip file. The endpoint and the
// credentials are in the environment, as for every program that uses the SDK. Prints what came back as JSON.

const { readFileSync } = require("node:fs");
const {
  CreateFunctionCommand, DeleteFunctionCommand, GetFunctionCommand, InvokeCommand, LambdaClient, ResourceNotFoundException,
  UpdateFunctionConfigurationCommand, waitUntilFunctionActiveV2, waitUntilFunctionUpdatedV2,
} = require("@aws-sdk/client-lambda");

const [FunctionName, Runtime, Role, zip] = process.argv.slice(2);

async function main() {
  const client = new LambdaClient({ maxAttempts: 1 });
  const wait = { client, minDelay: 1, maxDelay: 1, maxWaitTime: 180 };
  const seen = {};

  const code = { ZipFile: readFileSync(zip) };
  const created = await client.send(
    new CreateFunctionCommand({ FunctionName, Runtime, Role, Handler: "index.handler", Code: code }));
  seen.created = { status: created.$metadata.httpStatusCode, state: created.State };
  seen.active = (await waitUntilFunctionActiveV2(wait, { FunctionName })).state;
  await client.send(new UpdateFunctionConfigurationCommand({ FunctionName, Timeout: 9 }));
  seen.updated = (await waitUntilFunctionUpdatedV2(wait, { FunctionName })).state;

  const invoke = async (payload) => {
    const result = await client.send(new InvokeCommand({ FunctionName, Payload: JSON.stringify(payload), LogType: "Tail" }));
    return {
      status: result.StatusCode,
      version: result.ExecutedVersion,
      error: result.FunctionError ?? null,
      payload: JSON.parse(result.Payload.transformToString()),
      log: Buffer.from(result.LogResult, "base64").toString(),
    };
  };
  seen.invoked = await invoke({ say: "grüße" });
  seen.failed = await invoke("fail");

  const caught = async (command) => {
    try {
      await client.send(command);
      return null;
    } catch (error) {
      return {
        name: error.name,
        message: error.message,
        status: error.$metadata.httpStatusCode,
        modelled: error instanceof ResourceNotFoundException,
        type: error.Type ?? null,
      };
    }
  };
  seen.conflict = await caught(
    new CreateFunctionCommand({ FunctionName, Runtime, Role, Handler: "index.handler", Code: code }));
  seen.deleted = (await client.send(new DeleteFunctionCommand({ FunctionName }))).$metadata.httpStatusCode;
  seen.gone = await caught(new GetFunctionCommand({ FunctionName }));
  console.log(JSON.stringify(seen));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
