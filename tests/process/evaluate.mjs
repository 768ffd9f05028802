// Evaluates IAM policies as AWS documents it, offline: cases come as JSON on stdin, what became of each goes as JSON to stdout.
// `@cloud-copilot/iam-simulate` knows actions, resources and condition keys of S3 and refuses a case that names one that is none.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const { runSimulation } = createRequire(process.argv[2] + '/')('@cloud-copilot/iam-simulate')
const { policies, bucketPolicy, cases } = JSON.parse(readFileSync(0, 'utf8'))

const results = []
for (const { role, action, resource, context } of cases) {
  const answer = await runSimulation(
    {
      request: {
        principal: `arn:aws:iam::123456789012:user/${role}`,
        action,
        resource: { resource, accountId: '123456789012' },
        contextVariables: context,
      },
      identityPolicies: [{ name: role, policy: policies[role] }],
      serviceControlPolicies: [],
      resourceControlPolicies: [],
      resourcePolicy: bucketPolicy,
    },
    {},
  )
  results.push(answer.resultType === 'error' ? `error: ${JSON.stringify(answer.errors)}` : answer.overallResult)
}
console.log(JSON.stringify(results))
