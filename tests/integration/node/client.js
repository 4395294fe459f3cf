// Calls the sidecar as a service written for Node would: @grpc/grpc-js and the .proto files.
//
//   node client.js SOCKET PROTO_DIRECTORY < request.json > answer.json
//
// The request holds key, plaintext, context and an envelope that another language made; bytes are
// in base64.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const DETAILS_KEY = "grpc-status-details-bin";
const CALL_TIMEOUT_MS = 20_000;

const [socket, protos] = process.argv.slice(2);
const definition = protoLoader.loadSync(
  ["keyside/v1/encryption.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"],
  { includeDirs: [path.resolve(protos)], keepCase: true, defaults: true },
);
const loaded = grpc.loadPackageDefinition(definition);
const service = new loaded.keyside.v1.EncryptionService(
  `unix:${socket}`,
  grpc.credentials.createInsecure(),
);

function call(method, request) {
  const deadline = new Date(Date.now() + CALL_TIMEOUT_MS);
  return new Promise((resolve, reject) => {
    service[method](request, { deadline }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

// The details of a google.rpc.Status, by the names of their types.
function readDetails(error) {
  const details = {};
  for (const bytes of error.metadata.get(DETAILS_KEY)) {
    for (const any of definition["google.rpc.Status"].deserialize(bytes).details) {
      const name = any.type_url.split("/").pop();
      details[name] = definition[name].deserialize(any.value);
    }
  }
  return details;
}

async function fail(method, request) {
  try {
    await call(method, request);
  } catch (error) {
    return {
      code: grpc.status[error.code],
      text: error.details,
      details: readDetails(error),
    };
  }
  throw new Error(`${method} succeeded`);
}

async function main() {
  const given = JSON.parse(fs.readFileSync(0, "utf8"));
  const plaintext = Buffer.from(given.plaintext, "base64");
  const { key, context } = given;

  const sealed = await call("Encrypt", { key, plaintext, context });
  const opened = await call("Decrypt", { envelope: sealed.envelope, context });
  const rewrapped = await call("Rewrap", { envelope: sealed.envelope });
  const foreign = await call("Decrypt", {
    envelope: Buffer.from(given.envelope, "base64"),
    context,
  });
  const answer = {
    envelope: rewrapped.envelope.toString("base64"),
    version: sealed.version,
    opened: opened.plaintext.toString("base64"),
    foreign: foreign.plaintext.toString("base64"),
    failures: {
      "wrong context": await fail("Decrypt", { envelope: sealed.envelope, context: {} }),
      "no such key": await fail("Encrypt", { key: "no-such-key", plaintext }),
      "wrong field": await fail("Encrypt", { key, plaintext, context: { "": "no name" } }),
    },
  };
  process.stdout.write(JSON.stringify(answer));
}

main().then(
  () => service.close(),
  (error) => {
    console.error(error);
    process.exitCode = 1;
    service.close();
  },
);
