// The identity provider that the tests sign in with: npm `oidc-provider`, over https, with accounts of our own. Whoever comes to
// an interaction is taken for the account that their `x-account` header names, or that they type; the rest is as a conforming
// provider does it.
//
// node provider.mjs SETTINGS.json: { modules, address, certificate, key, accounts, console, ready, deviceCodeSeconds }. Writes its issuer to the file `ready`.
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:https';
import { text } from 'node:stream/consumers';
import { pathToFileURL } from 'node:url';

const settings = JSON.parse(readFileSync(process.argv[2]));
const found = createRequire(`${settings.modules}/`).resolve('oidc-provider');
const { default: Provider } = await import(pathToFileURL(found));

const server = createServer({ cert: readFileSync(settings.certificate), key: readFileSync(settings.key) });
await new Promise((listening) => server.listen(0, settings.address, listening));
const host = settings.address === '127.0.0.1' ? 'localhost' : settings.address;
const issuer = `https://${host}:${server.address().port}`;

const key = (kid, kind, options) => ({
  ...generateKeyPairSync(kind, options).privateKey.export({ format: 'jwk' }), kid, use: 'sig',
});
const client = {
  application_type: 'native',
  grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
  response_types: ['code'],
  redirect_uris: ['http://127.0.0.1/callback'],
};
// Read for each question, so that a test can change what the provider says.
const account = (id) => JSON.parse(readFileSync(settings.accounts))[id];

const provider = new Provider(issuer, {
  clients: [
    { ...client, client_id: 'portcullis', token_endpoint_auth_method: 'none' },
    {
      client_id: 'portcullis-console', client_secret: 'secret of the console', application_type: 'web',
      grant_types: ['authorization_code'], response_types: ['code'],
      redirect_uris: [`${settings.console}/sign-in/corp/callback`],
      post_logout_redirect_uris: [`${settings.console}/signed-out`],
    },
    { ...client, client_id: 'portcullis-desktop', client_secret: 'not-so-secret', token_endpoint_auth_method: 'client_secret_basic' },
  ],
  jwks: { keys: [key('rsa', 'rsa', { modulusLength: 2048 }), key('ec', 'ec', { namedCurve: 'P-256' })] },
  cookies: { keys: ['of a test'] },
  scopes: ['openid', 'offline_access', 'email', 'groups'],
  claims: { openid: ['sub', 'amr', 'auth_time'], email: ['email', 'email_verified'], groups: ['groups'] },
  // The groups stand in the ID token, as with Okta, Entra and Keycloak.
  conformIdTokenClaims: false,
  features: {
    devInteractions: { enabled: false },
    deviceFlow: { enabled: true },
    revocation: { enabled: true },
  },
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  findAccount: (_, id) => account(id) && { accountId: id, claims: () => ({ sub: id, ...account(id) }) },
  ttl: { AccessToken: 300, DeviceCode: settings.deviceCodeSeconds, Grant: 3600, IdToken: 300, Interaction: 300, RefreshToken: 3600, Session: 3600 },
});

const LOGIN = '<!DOCTYPE html><title>Who are you?</title><form method=post><input name=account><button>Go on</button></form>';

async function interact(request, response) {
  const { prompt, params, session, grantId } = await provider.interactionDetails(request, response);
  let accountId = request.headers['x-account'];
  if (!accountId && prompt.name === 'login') {
    if (request.method !== 'POST') return response.writeHead(200, { 'content-type': 'text/html' }).end(LOGIN);
    accountId = new URLSearchParams(await text(request)).get('account');
  }
  let result;
  if (accountId === 'nobody') {
    result = { error: 'access_denied', error_description: 'the person said no' };
  } else if (prompt.name === 'login') {
    result = { login: { accountId, amr: ['pwd', 'otp'] } };
  } else {
    const grant = grantId
      ? await provider.Grant.find(grantId)
      : new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
    grant.addOIDCScope(params.scope);
    result = { consent: { grantId: await grant.save() } };
  }
  await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: true });
}

for (const failure of ['server_error', 'authorization.error', 'grant.error', 'interaction.error', 'code_verification.error', 'device_resume.error']) {
  provider.on(failure, (_, error) => console.log(failure, error.error, error.error_description, error.stack));
}

const others = provider.callback();
server.on('request', (request, response) => {
  if (!request.url.startsWith('/interaction/')) return others(request, response);
  interact(request, response).catch((error) => response.writeHead(500).end(String(error)));
});

writeFileSync(`${settings.ready}.new`, issuer);
renameSync(`${settings.ready}.new`, settings.ready);
