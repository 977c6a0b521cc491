"""vLLM's OpenAI server with strategies: per request, by model alias, or as the server's default.

Any OpenAI client works unchanged::

    import base64

    import halludecode as hd
    from openai import OpenAI

    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="secret")
    picture = base64.b64encode(hd.testbed.picture_path(3).read_bytes()).decode()
    answer = client.chat.completions.create(
        model="testbed",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                    {"type": "text", "text": "Describe the image."},
                ],
            }
        ],
        temperature=0,
        max_tokens=64,
        extra_body={"vllm_xargs": {"strategy": "vcd(alpha=0.5)"}},
    )
    print(answer.choices[0].message.content)
    print(answer.strategy)  # vcd(alpha=0.5,beta=0.1,noise_step=500)
"""
